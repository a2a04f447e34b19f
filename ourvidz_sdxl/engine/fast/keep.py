"""What the fast engine holds on the GPU, kept on disk as it lies there: a later start reads it, and converts nothing.

The file stands beside the checkpoint and is in the safetensors format; its tensors are flat, in the order of their memory. Its name
has a hash of all that decides its bytes: the fingerprints of checkpoint and LoRA, precisions, the version of torch, and the code
of the whole engine, which reads, sums and lays out the weights. So it is never stale, only unused; it is written aside, after the
first load, and may be deleted at any time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import structlog
import torch
from torch import Tensor, nn

log = structlog.get_logger()

ENGINE = Path(__file__).parents[1]
FILES = 2  # of one checkpoint: workers with other settings may share the volume; what was used longest ago goes
GRAIN = 256  # bytes; CUDA aligns its own allocations so, and tensor cores want 16
CHUNK = 16 << 20  # bytes read at a time
READERS = 6
DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
Slots = Mapping[str, Tensor]


def kept_file(checkpoint: Path, *facts: object) -> Path:
    """Where the weights of this checkpoint are kept, if they are; `facts` are what else decides them."""
    code = b"".join(module.read_bytes() for module in sorted(ENGINE.rglob("*.py")))
    digest = sha256(code + repr((torch.__version__, *facts)).encode()).hexdigest()
    return checkpoint.with_name(f"{checkpoint.name}.{digest[:16]}.runtime")


def slots(**roots: Any) -> Slots:
    """Every tensor in our own objects, and every parameter of torch's modules, by its path; what stands in two places, once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in _walk("", roots):
        found.setdefault(id(tensor), (name.removeprefix("."), tensor))
    return dict(found.values())


def _walk(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, nn.Module):
        yield from ((f"{path}.{name}", parameter) for name, parameter in value.named_parameters())
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _walk(f"{path}.{index}", item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _walk(f"{path}.{name}", item)
    elif type(value).__module__.startswith("ourvidz_sdxl."):
        yield from _walk(path, vars(value))


def read_into(empty: Slots, file: Path, device: torch.device) -> bool:
    """Gives the tensors of `empty`, which have no memory yet, what the file has for them; False if it has something else.

    Everything lies in one piece of memory then, which lives as long as any of them.
    """
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
            layout = _layout(empty)
            total = max(end for _, (_, end) in layout.values())
            if header != _header(layout) or file.stat().st_size != 8 + size + total:
                return False
            data = torch.empty(total, dtype=torch.uint8, device=device)
            _fill(data, stream.fileno(), 8 + size)
        os.utime(file)
    except (OSError, ValueError) as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("kept_weights_unread", reason=str(error))
        return False
    for name, slot in empty.items():
        begin, end = layout[name][1]
        tensor = data[begin:end].view(slot.dtype).as_strided(slot.shape, slot.stride())
        own = nn.Parameter(tensor, requires_grad=False) if isinstance(slot, nn.Parameter) else tensor
        torch.utils.swap_tensors(slot, own)  # type: ignore[no-untyped-call]
    return True


def write(tensors: Slots, file: Path) -> None:
    """Meant for a thread of its own. A disk that is full, or may not be written to, costs nothing but a warning."""
    layout = _layout(tensors)
    total = max(end for _, (_, end) in layout.values())
    part = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        if shutil.disk_usage(file.parent).free < 2 * total:
            raise OSError(f"{file.parent} would be nearly full with {total >> 20} MiB more")
        header = json.dumps(_header(layout)).encode()
        header += b" " * (-len(header) % 8)
        with part.open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            for name, tensor in tensors.items():
                with aside(tensor.device):
                    flat = tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset()).view(torch.uint8).cpu()
                begin, end = layout[name][1]
                stream.write(flat.numpy().data)
                stream.write(bytes(end - begin - len(flat)))
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(file)
        _remove_old(file)
    except OSError as error:
        log.warning("weights_not_kept", reason=str(error))
        part.unlink(missing_ok=True)
    else:
        log.info("weights_kept", file=file.name, mebibytes=total >> 20)


def aside(device: torch.device) -> AbstractContextManager[None]:
    """A stream of its own, so that neither a copy waits for the painting nor the painting for a copy."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def _remove_old(file: Path) -> None:
    """All but the newest of the checkpoint's; what a process wrote that died halfway, too."""
    checkpoint, _, _ = file.name.rsplit(".", 2)
    ours = [path for path in file.parent.glob("*.runtime*") if path.name.startswith(f"{checkpoint}.")]
    for old in sorted(ours, key=lambda path: path.stat().st_mtime)[:-FILES]:
        old.unlink(missing_ok=True)


def _layout(tensors: Slots) -> dict[str, tuple[Tensor, tuple[int, int]]]:
    """Each tensor's place in the file, in bytes behind the header."""
    layout, end = {}, 0
    for name, tensor in tensors.items():
        if not (tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)):
            raise ValueError(f"{name} has gaps in its memory")
        begin, end = end, end + -(-tensor.numel() * tensor.element_size() // GRAIN) * GRAIN
        layout[name] = (tensor, (begin, end))
    return layout


def _header(layout: Mapping[str, tuple[Tensor, tuple[int, int]]]) -> dict[str, Any]:
    return {
        name: {"dtype": DTYPES[tensor.dtype], "shape": [(end - begin) // tensor.element_size()], "data_offsets": [begin, end]}
        for name, (tensor, (begin, end)) in layout.items()
    } | {"__metadata__": {name: str([*tensor.shape]) for name, (tensor, _) in layout.items()}}


def _fill(data: Tensor, file: int, offset: int) -> None:
    """Reads the file from `offset` on into `data`, through pinned memory where that is on a GPU. Raises OSError."""
    buffers: SimpleQueue[Tensor] = SimpleQueue()
    for _ in range(READERS):
        buffers.put(torch.empty(min(CHUNK, len(data)), dtype=torch.uint8, pin_memory=data.is_cuda))

    def copy(begin: int) -> None:
        buffer = buffers.get()
        wanted = min(len(buffer), len(data) - begin)
        view, done = memoryview(buffer.numpy().data)[:wanted], 0
        while done < wanted:
            got = os.preadv(file, [view[done:]], offset + begin + done)
            if not got:
                raise OSError("the file ends before its last tensor")
            done += got
        data[begin : begin + wanted].copy_(buffer[:wanted])  # waits for the copy, so that the buffer is free again
        buffers.put(buffer)

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(copy, range(0, len(data), CHUNK)))
