"""Everything that can go wrong, as one tree.

WorkerError
├── SettingsInvalid      settings_invalid     the operator must mend the environment
├── JobInvalid           invalid_job          the row asks for something that cannot be painted
├── ReferenceInvalid     invalid_reference    the reference image cannot be had or read
│   └── ReferenceUnreachable                  its server may answer another time          (retryable)
├── ContentRefused       content_refused      the content rules forbid what the job asks for, or what came of it
├── ModelMissing         model_missing        no model file at MODEL_PATH
│   └── ModelNotDownloaded  model_not_downloaded  … and MODEL_URL did not give it
├── ModelInvalid         model_invalid        the file there is not a usable SDXL
├── BlankImage           blank_image          what came out is black or not a number, in fp32 too (suspect)
├── OutOfMemory          out_of_memory        the GPU has no room for this job, in small pieces neither
├── GpuUnusable          gpu_unusable         the GPU is in a state only a new process can leave (retryable)
├── WorkerDied           worker_died          the process ended or was ended while it painted    (retryable)
├── UploadFailed         upload_failed        Storage did not take the images             (retryable)
│   └── UploadRefused    upload_refused       … and never will: their size, type or name
├── SupabaseUnavailable  supabase_unavailable REST did not answer                         (retryable)
├── SupabaseRefused      supabase_refused     REST answered no: a right, a function or a constraint
├── JobCancelled         cancelled            its user asked to stop
├── LeaseLost            lease_lost           the job belongs to another worker now
├── Released             released             this worker shuts down and gives the job back
└── UnknownError         unknown_error        an exception of no other kind               (suspect)

Two codes are the database's own: lease_expired (the worker stopped answering) and poison_job (two workers in a row died of it).
A suspect error may be the worker's own fault: another worker tries the job first, at no charge to it, and a worker on which such
errors follow each other stops claiming (`gpu.MAX_FAULTS`).
"""

from __future__ import annotations

from typing import ClassVar


class WorkerError(Exception):
    """Root of the tree.

    `code` is stable and goes into `jobs.error_code`. `retryable` says whether another attempt can end differently, and `suspect`
    whether the worker itself may be at fault. `user_message` is safe to show to the job's user; the exception's own text is for
    the operator's log.
    """

    code: ClassVar[str] = "unknown_error"
    retryable: ClassVar[bool] = True
    suspect: ClassVar[bool] = False
    user_message: str = "Unknown error occurred"

    def __init__(self, message: str = "", *, user_message: str | None = None) -> None:
        super().__init__(message or user_message or self.user_message)
        if user_message is not None:
            self.user_message = user_message


class SettingsInvalid(WorkerError):
    code = "settings_invalid"
    retryable = False
    user_message = "The worker is not set up correctly."


class JobInvalid(WorkerError):
    code = "invalid_job"
    retryable = False
    user_message = "This job cannot be painted as it is."


class ReferenceInvalid(WorkerError):
    code = "invalid_reference"
    retryable = False
    user_message = "The reference image could not be used."


class ReferenceUnreachable(ReferenceInvalid):
    retryable = True
    user_message = "The reference image could not be reached."


class ContentRefused(WorkerError):
    code = "content_refused"
    retryable = False
    user_message = "This request is not allowed here."


class ModelMissing(WorkerError):
    code = "model_missing"
    retryable = False
    user_message = "The worker has no model."


class ModelNotDownloaded(ModelMissing):
    code = "model_not_downloaded"
    user_message = "The worker could not fetch its model."


class ModelInvalid(WorkerError):
    code = "model_invalid"
    retryable = False
    user_message = "The worker's model cannot be used."


class BlankImage(WorkerError):
    code = "blank_image"
    suspect = True
    user_message = "The picture came out blank; try another seed."


class OutOfMemory(WorkerError):
    code = "out_of_memory"
    retryable = False
    user_message = "The GPU has too little memory for this job; a smaller size may work."


class GpuUnusable(WorkerError):
    code = "gpu_unusable"
    user_message = "The GPU failed and is being restarted."


class WorkerDied(WorkerError):
    code = "worker_died"
    user_message = "The worker died and is being restarted."


class UploadFailed(WorkerError):
    code = "upload_failed"
    user_message = "The images could not be stored."


class UploadRefused(UploadFailed):
    """Refusal of an object's size, type or name, which another attempt would meet again."""

    code = "upload_refused"
    retryable = False
    user_message = "The images could not be stored: Storage refused them."


class SupabaseUnavailable(WorkerError):
    code = "supabase_unavailable"
    user_message = "The database did not answer."


class SupabaseRefused(WorkerError):
    code = "supabase_refused"
    retryable = False
    user_message = "The database did not accept the result."


class JobCancelled(WorkerError):
    code = "cancelled"
    retryable = False
    user_message = "Cancelled."


class LeaseLost(WorkerError):
    code = "lease_lost"
    retryable = False
    user_message = "Another worker has this job now."


class Released(WorkerError):
    code = "released"
    user_message = "The worker is restarting."


class UnknownError(WorkerError):
    """Exception of no other kind; its own text may hold what no user should see."""

    suspect = True
