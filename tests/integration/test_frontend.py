"""The example that a frontend developer would write, run with the real supabase-js."""

import base64
import json
import os
import subprocess
from io import BytesIO

import numpy as np
from PIL import Image

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase, node
from tests.integration.conftest import Database
from tests.pace import TIMEOUT_SECONDS
from tests.processes import WorkerProcess


def test_a_frontend_hears_each_state_once_and_gets_its_picture(
    supabase: EmbeddedSupabase, db: Database, session_worker: WorkerProcess
) -> None:
    done = subprocess.run(
        [node(), ROOT / "supabase" / "local" / "examples" / "frontend.mjs"],
        env=os.environ | {"SUPABASE_URL": supabase.url, "SUPABASE_KEY": supabase.publishable_key},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for way, states in told["heard"].items():
        assert states == ["queued", "processing", "completed"], way
    picture = Image.open(BytesIO(base64.b64decode(told["picture"])))
    assert (picture.format, picture.size) == ("PNG", (128, 128))
    corner, middle = np.array(picture)[3, 3].astype(int), np.array(picture)[64, 64].astype(int)
    assert corner.max() < 100, f"the background should be black, not {corner}"
    assert middle[0] > 150, f"the star should be yellow, not {middle}"
    assert middle[1] > 120, f"the star should be yellow, not {middle}"
    assert middle[2] < 120, f"the star should be yellow, not {middle}"
