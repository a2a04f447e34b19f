-- What a job is. A frontend inserts a row with what it asks for; the worker fills in the rest.
-- The CHECK constraints are the first validator: a job that cannot be painted is refused in the browser, under a name that says why.

-- Helpers, trigger functions and the queue's own tables; never listed in the API's exposed schemas. A project may have a schema of this
-- name already: then it keeps its comment, its owner and its grants, and every grant below names an object of ours.
do $$ begin
  if to_regnamespace('private') is null then
    create schema private;
    comment on schema private is 'Functions and tables that only the database and the workers use. Not exposed by the API.';
  end if;
end $$;

create table public.jobs (
  -- who and what
  id                   uuid primary key default gen_random_uuid(),
  user_id              uuid not null default auth.uid() references auth.users (id) on delete cascade,
  job_type             text not null,
  target_worker        text not null default 'sdxl',
  metadata             jsonb not null default '{}',
  idempotency_key      text,
  -- asked for
  prompt               text not null default '',
  negative_prompt      text not null default '',
  batch_size           smallint not null default 1,
  width                integer,
  height               integer,
  steps                smallint,
  guidance_scale       double precision,
  seed                 bigint,
  scheduler            text,
  output_format        text not null default 'png',
  reference_image_url  text,
  reference_image_path text,
  reference_strength   double precision,
  exact_copy_mode      boolean not null default false,
  enhance_prompt       boolean not null default false,
  fallback_to_text     boolean not null default false,
  -- state
  status               text not null default 'queued',
  progress             smallint not null default 0,
  error_code           text,
  error_message        text,
  attempts             smallint not null default 0,
  max_attempts         smallint not null default 3,
  cancel_requested_at  timestamptz,
  created_at           timestamptz not null default now(),
  started_at           timestamptz,
  completed_at         timestamptz,
  -- what really ran
  enhanced_prompt      text,
  warnings             jsonb not null default '[]',
  metrics              jsonb,
  -- order
  priority             smallint not null default 100,
  run_at               timestamptz not null default now(),

  constraint job_type_is_sdxl_image_fast_or_sdxl_image_high check (job_type in ('sdxl_image_fast', 'sdxl_image_high')),
  constraint target_worker_is_a_short_lowercase_name check (target_worker ~ '^[a-z0-9_-]{1,64}$'),
  constraint metadata_is_an_object_of_at_most_16_kb
    check (jsonb_typeof(metadata) = 'object' and octet_length(metadata::text) <= 16384),
  constraint metadata_fit_is_cover_or_contain check (coalesce(metadata -> 'fit', '"cover"') in ('"cover"', '"contain"')),
  constraint metadata_private_metadata_is_true_or_false
    check (jsonb_typeof(coalesce(metadata -> 'private_metadata', 'false')) = 'boolean'),
  constraint idempotency_key_has_1_to_200_characters check (length(idempotency_key) between 1 and 200),
  -- something to read: a character outside of Unicode's White_Space, Cc and Default_Ignorable_Code_Point and of U+2800
  constraint prompt_is_required_unless_exact_copy_mode
    check (exact_copy_mode or prompt ~ ('[^\u0001-\u0020\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f'
           '\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8'
           '\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]')),
  constraint prompt_has_at_most_4000_characters check (length(prompt) <= 4000),
  constraint negative_prompt_has_at_most_4000_characters check (length(negative_prompt) <= 4000),
  constraint batch_size_is_1_3_or_6 check (batch_size in (1, 3, 6)),
  constraint width_and_height_come_together check ((width is null) = (height is null)),
  constraint width_is_a_multiple_of_64_from_128_to_2048 check (width % 64 = 0 and width between 128 and 2048),
  constraint height_is_a_multiple_of_64_from_128_to_2048 check (height % 64 = 0 and height between 128 and 2048),
  constraint width_times_height_is_at_most_2097152 check (width::bigint * height <= 2097152),
  constraint steps_is_from_1_to_100 check (steps between 1 and 100),
  constraint steps_is_at_most_50_with_lcm check (scheduler <> 'lcm' or steps <= 50),
  constraint guidance_scale_is_from_0_to_30 check (guidance_scale between 0 and 30),
  constraint seed_is_from_0_to_2147483647 check (seed between 0 and 2147483647),
  constraint scheduler_is_known check (scheduler in
    ('euler', 'euler_a', 'dpmpp_2m', 'dpmpp_2m_karras', 'dpmpp_sde_karras', 'ddim', 'unipc', 'lcm')),
  constraint output_format_is_png_webp_or_jpeg check (output_format in ('png', 'webp', 'jpeg')),
  constraint reference_is_a_url_or_a_path_not_both
    check (reference_image_url is null or reference_image_path is null),
  constraint reference_image_url_is_https
    check (length(reference_image_url) <= 2048
           and reference_image_url ~ '^https://[^/?#\\]'
           -- neither white space (Unicode's White_Space) nor control characters (Cc)
           and reference_image_url
               !~ '[\u0001-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]'),
  constraint reference_image_url_has_no_user_name_and_no_port_but_443
    check (reference_image_url !~ '^https://([^/?#\\]*@|(\[[^]]*\]|[^:/?#\\]*):(?!443([/?#\\]|$)))'),
  -- Storage's rule for object names, and no empty segment
  constraint reference_image_path_is_an_object_name
    check (reference_image_path ~ '^[A-Za-z0-9_!.*''() &$=@;:+,?-]+(/[A-Za-z0-9_!.*''() &$=@;:+,?-]+)*$'),
  constraint reference_image_path_is_in_your_own_folder
    check (length(reference_image_path) <= 1024
           and reference_image_path ~ ('^((reference_images|sdxl_image_fast|sdxl_image_high)/)?' || user_id || '/[^/]')
           and reference_image_path !~ '(^|/)\.\.?(/|$)'),
  constraint reference_strength_is_from_0_to_1 check (reference_strength between 0 and 1),
  constraint reference_strength_is_required_with_a_reference
    check (exact_copy_mode or reference_strength is not null
           or (reference_image_url is null and reference_image_path is null)),
  constraint exact_copy_mode_needs_a_reference
    check (not exact_copy_mode or reference_image_url is not null or reference_image_path is not null),

  constraint status_is_known check (status in ('queued', 'processing', 'completed', 'failed', 'cancelled')),
  constraint progress_is_from_0_to_100 check (progress between 0 and 100),
  constraint max_attempts_is_from_1_to_20 check (max_attempts between 1 and 20),
  constraint attempts_is_from_0_to_max_attempts check (attempts between 0 and max_attempts),
  constraint priority_is_from_0_to_1000 check (priority between 0 and 1000),
  constraint warnings_is_an_array check (jsonb_typeof(warnings) = 'array'),
  constraint finished_has_a_time check ((status in ('completed', 'failed', 'cancelled')) = (completed_at is not null)),
  constraint failed_has_a_code check (status <> 'failed' or error_code is not null)
) with (
  -- room on each page for heap-only updates; vacuum often, since a queue turns over its rows
  fillfactor = 85, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500,
  autovacuum_analyze_scale_factor = 0.02, autovacuum_analyze_threshold = 500, autovacuum_vacuum_cost_delay = 0
);

-- status is in no index, so that a claim is a heap-only update
create index jobs_user_idx on public.jobs (user_id, created_at desc);
create index jobs_completed_idx on public.jobs (completed_at) where completed_at is not null;
create index jobs_failed_idx on public.jobs (completed_at) where completed_at is not null and error_code is not null;
-- not partial, so that on_conflict=user_id,idempotency_key of the REST API finds it
create unique index jobs_idempotency_key_is_unique_per_user on public.jobs (user_id, idempotency_key);

-- The queue's half of each job: its place among those that wait, and its lease. A row of its own, because each change of a row of jobs is
-- an event of postgres_changes that shows all of the row to its user: a heartbeat is none, and no token, worker or virtual time is in one.
-- (Column grants would hide them, too; but then PostgREST answers 42501 to every select=* of a frontend.)
-- job_type, target_worker, priority and run_at repeat those of jobs, so that a claim finds the next job in one index.
-- Who locks rows of both tables locks jobs first. expires_at is in no index, so that heartbeats are heap-only updates.
create table private.leases (
  job_id        uuid primary key references public.jobs (id) on delete cascade,
  state         text not null default 'waiting',
  -- place in the queue
  user_id       uuid not null,
  target_worker text not null,
  job_type      text not null,
  priority      smallint not null,
  run_at        timestamptz not null,
  cost          real not null,
  fair_key      double precision not null,
  -- lease
  token         uuid,
  worker        text,
  expires_at    timestamptz,
  claims        integer not null default 0,
  crashes       smallint not null default 0,
  faulted_on    text[] not null default '{}',
  avoid_until   timestamptz,

  constraint lease_state_is_known check (state in ('waiting', 'held', 'ended')),
  constraint held_has_a_token_a_worker_and_an_end
    check (state <> 'held' or (token is not null and worker is not null and expires_at is not null)),
  constraint cost_is_positive check (cost > 0)
) with (
  fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500,
  autovacuum_analyze_scale_factor = 0.02, autovacuum_analyze_threshold = 500, autovacuum_vacuum_cost_delay = 0
);
create index leases_queue_idx on private.leases (state, target_worker, priority, fair_key, job_id) where state <> 'ended';
create index leases_active_idx on private.leases (user_id, target_worker) where state <> 'ended';
create index leases_token_idx on private.leases (token) where state = 'held';

create table public.job_images (
  job_id           uuid not null references public.jobs (id) on delete cascade,
  index            smallint not null check (index between 0 and 5),
  bucket           text not null,
  path             text not null,
  thumbnail_path   text not null,
  seed             bigint not null,
  width            integer not null check (width > 0),
  height           integer not null check (height > 0),
  mime_type        text not null,
  bytes            integer not null check (bytes > 0),
  sha256           text not null check (sha256 ~ '^[0-9a-f]{64}$'),
  similarity_score real check (similarity_score between -1 and 1),
  created_at       timestamptz not null default now(),
  primary key (job_id, index)
);
create unique index job_images_path_idx on public.job_images (path, bucket);
create unique index job_images_thumbnail_path_idx on public.job_images (thumbnail_path, bucket);

create table public.job_events (
  id         bigint generated always as identity primary key,
  job_id     uuid not null references public.jobs (id) on delete cascade,
  status     text not null,
  attempt    smallint not null,
  worker     text,
  error_code text,
  created_at timestamptz not null default clock_timestamp()
);
create index job_events_job_idx on public.job_events (job_id, id);

create table public.negative_presets (
  job_type        text primary key constraint negative_preset_job_type_is_known check (job_type in ('sdxl_image_fast', 'sdxl_image_high')),
  negative_prompt text not null default '' constraint negative_preset_has_at_most_2000_characters check (length(negative_prompt) <= 2000)
);
insert into public.negative_presets (job_type) values ('sdxl_image_fast'), ('sdxl_image_high');

create table public.workers (
  id            text primary key,
  target_worker text not null,
  host          text not null,
  gpu           text,
  vram_mb       integer,
  model         text,
  engine        text,
  engine_note   text,
  version       text not null,
  state         text not null constraint worker_state_is_known check (state in ('starting', 'ready', 'draining', 'stopped', 'failed')),
  error         text,
  failed_at     timestamptz,
  started_at    timestamptz not null default now(),
  last_seen_at  timestamptz not null default now(),
  report_seconds real not null default 15 constraint worker_report_seconds_is_positive check (report_seconds > 0),
  max_jobs      smallint not null default 1 constraint worker_max_jobs_is_positive check (max_jobs > 0),
  idle_since    timestamptz,
  pod_id        text,
  start_id      uuid
);
create index workers_last_seen_idx on public.workers (last_seen_at);
create index workers_pod_idx on public.workers (pod_id) where pod_id is not null;
create index workers_start_idx on public.workers (start_id) where start_id is not null;
create index workers_target_idx on public.workers (target_worker);

-- How long what is over is kept; one row. See retire_jobs.
create table public.retention (
  only_row boolean primary key default true check (only_row),
  days     integer constraint retention_days_is_positive check (days > 0),
  next_at  timestamptz not null default now()
);
insert into public.retention default values;

comment on table public.jobs is 'One row is one request for images. Insert a row to ask; listen to it to know.';
comment on table public.job_images is 'The pictures of completed jobs: storage paths, never signed URLs. Written only by finish_job.';
comment on table public.job_events is 'Append-only history of each job''s state, written by trigger.';
comment on table public.negative_presets is 'What every job of a type avoids: joined before the user''s own negative prompt. Edit it here.';
comment on table public.retention is 'How many days finished jobs and their pictures are kept; one row. Set days to have older ones deleted.';
comment on column public.retention.only_row is 'Keeps it at one row.';
comment on column public.retention.days is 'After so many days a finished job goes, with its pictures and its history; absent: kept forever.';
comment on column public.retention.next_at is 'Not looked for again before then.';
comment on table public.workers is 'One row a worker: what it runs on and when it was last seen.';
comment on column public.jobs.id is 'Chosen by the frontend, or made here. Also the id of the job''s trace.';
comment on column public.jobs.user_id is 'Who asked; always the signed-in user.';
comment on column public.jobs.job_type is 'sdxl_image_fast (15 steps) or sdxl_image_high (25); names the bucket of the pictures, too.';
comment on column public.jobs.target_worker is 'The kind of worker that takes it: those with the same TARGET_WORKER.';
comment on column public.jobs.idempotency_key is 'Unique for a user: the same request sent twice is one job.';
comment on column public.jobs.prompt is 'What the picture is to show. Private to the user: in no log, no trace and no view of ours.';
comment on column public.jobs.negative_prompt is 'What it is not to show; the preset of the job''s type comes before it.';
comment on column public.jobs.batch_size is 'Number of pictures, painted together: 1, 3 or 6.';
comment on column public.jobs.output_format is 'png, webp or jpeg.';
comment on column public.jobs.reference_image_url is 'An address, https, of the picture to start from.';
comment on column public.jobs.exact_copy_mode is 'Copy the reference: a denoise strength of 0.05 at most, and neither guidance nor a negative prompt.';
comment on column public.jobs.enhance_prompt is 'Have the prompt written longer by a language model, where the worker has one.';
comment on column public.jobs.status is 'queued, processing, completed, failed or cancelled; the last three are final.';
comment on column public.jobs.progress is
  '0 until the job is completed, then 100. While it runs, its steps and previews are broadcast on job:<id>: no heartbeat changes this row.';
comment on column public.jobs.error_code is 'Why it failed, or why its last attempt did: a stable code, such as invalid_reference.';
comment on column public.jobs.error_message is 'The same in words for the user.';
comment on column public.jobs.max_attempts is 'After so many attempts that count, a failure is final.';
comment on column public.jobs.cancel_requested_at is 'Set it to ask that the job stops; the only column that a client may change.';
comment on column public.jobs.created_at is 'When it was asked for.';
comment on column public.jobs.started_at is 'When it was last claimed.';
comment on column public.jobs.completed_at is 'When it ended, however it did.';
comment on column public.jobs.enhanced_prompt is 'The prompt that was painted, where a language model wrote it longer.';
comment on column public.jobs.metrics is 'Of the last painting: generation_time (s), vram_usage (MiB), i2i_mode, steps, quality_events, trace_id and more.';
comment on column public.jobs.priority is 'Lower goes first; each priority is a queue of its own.';
comment on column public.jobs.run_at is 'Not claimed before: later than created_at when an attempt is put off.';
comment on column public.jobs.width is 'Pixels; absent means the model''s native size, or the reference''s aspect.';
comment on column public.jobs.height is 'As width, with which it comes.';
comment on column public.jobs.steps is 'Denoising steps; absent means the worker''s DEFAULT_STEPS, else 15 for sdxl_image_fast and 25 for sdxl_image_high.';
comment on column public.jobs.guidance_scale is 'Classifier-free guidance; absent means the worker''s DEFAULT_GUIDANCE, else 6.0 for fast and 7.5 for high.';
comment on column public.jobs.seed is 'Seed of image 0; image i has seed + i. Absent means a random one, stored in job_images.';
comment on column public.jobs.reference_strength is '0 ignores the reference, 1 keeps it: denoise strength is 1 - reference_strength.';
comment on column public.jobs.reference_image_path is 'An object of your own: <user_id>/… in reference_images, or bucket/<user_id>/… .';
comment on column public.jobs.scheduler is 'The sampler; absent means the checkpoint''s own.';
comment on column public.jobs.metadata is 'Free for the frontend. The worker reads "fit" (cover | contain) and "private_metadata" (true keeps all words out of the files).';
comment on column public.jobs.fallback_to_text is 'Paint from the prompt alone when the reference cannot be used; warnings then say so.';
comment on column public.jobs.warnings is 'What went otherwise than asked for: [{"code", "message"}].';
comment on column public.jobs.attempts is 'Attempts that count: grows with each claim; what a worker gives back unfinished is not counted.';
comment on column public.job_images.job_id is 'The job that it was painted for.';
comment on column public.job_images.index is 'Its place in the batch, from 0.';
comment on column public.job_images.bucket is 'Where it lies in Storage: the bucket, private, named like the job''s type.';
comment on column public.job_images.path is 'Its object in the bucket: <user id>/<job id>/<claim>-<index>.<suffix>. Ask Storage for a signed URL.';
comment on column public.job_images.thumbnail_path is 'A WebP of at most 256 pixels along the longer edge, in the same bucket.';
comment on column public.job_images.seed is 'That it was painted with: with the same model, prompt and settings it gives the same picture.';
comment on column public.job_images.width is 'Pixels.';
comment on column public.job_images.height is 'Pixels.';
comment on column public.job_images.mime_type is 'image/png, image/webp or image/jpeg.';
comment on column public.job_images.bytes is 'The size of the file.';
comment on column public.job_images.sha256 is 'Of the file, in hexadecimal digits.';
comment on column public.job_images.similarity_score is 'Structural similarity to the reference, -1 to 1; absent without a reference.';
comment on column public.job_images.created_at is 'When its job was completed.';
comment on column public.job_events.id is 'Grows with time.';
comment on column public.job_events.job_id is 'The job whose status changed.';
comment on column public.job_events.status is 'What it changed to.';
comment on column public.job_events.attempt is 'The job''s attempts at that time.';
comment on column public.job_events.worker is 'Who claimed the job last.';
comment on column public.job_events.error_code is 'Why, where something went wrong.';
comment on column public.job_events.created_at is 'When, to the microsecond: later events of one transaction are later.';
comment on column public.negative_presets.job_type is 'sdxl_image_fast or sdxl_image_high.';
comment on column public.negative_presets.negative_prompt is 'Empty for none; a change holds from the next claim on.';
comment on column public.workers.id is 'WORKER_ID, with -gpu0, -gpu1, … on a host of several GPUs.';
comment on column public.workers.target_worker is 'Which jobs it takes.';
comment on column public.workers.host is 'The name of its machine.';
comment on column public.workers.gpu is 'Its GPU; absent on a CPU.';
comment on column public.workers.vram_mb is 'The GPU''s memory in MiB.';
comment on column public.workers.model is 'The checkpoint that it has loaded.';
comment on column public.workers.engine is 'fast, "fast, FP8", or reference: diffusers as it is.';
comment on column public.workers.engine_note is 'Why it is not the fast one, or not with FP8; absent where nothing is in the way.';
comment on column public.workers.version is 'Of the worker''s program.';
comment on column public.workers.state is 'starting, ready, draining, stopped or failed, as it last said itself.';
comment on column public.workers.failed_at is 'When it last failed.';
comment on column public.workers.started_at is 'When its id was first seen.';
comment on column public.workers.last_seen_at is 'When it last said anything; it does four times a lease.';
comment on column public.workers.report_seconds is 'So often it says that it lives: a quarter of its LEASE_SECONDS.';
comment on column public.workers.max_jobs is 'So many jobs it holds at most before they are painted: its MAX_CONCURRENT_JOBS.';
comment on column public.workers.idle_since is 'Since when it has had nothing to do; absent while it holds a job.';
comment on column public.workers.pod_id is 'The RunPod pod that it runs in; absent elsewhere.';
comment on column public.workers.start_id is 'The row of worker_starts that asked for it, where a serverless request did.';
comment on column public.workers.error is 'Why the worker last failed (at failed_at), as "code: message"; it stays when another process has taken over.';

comment on table private.leases is 'The queue''s half of each job: its place among those that wait, and its lease. Seen by workers only.';
comment on column private.leases.job_id is 'The job.';
comment on column private.leases.state is 'waiting (jobs.status is queued), held (processing) or ended (completed, failed, cancelled).';
comment on column private.leases.user_id is 'As in jobs: whose turn it is.';
comment on column private.leases.target_worker is 'As in jobs.';
comment on column private.leases.job_type is 'As in jobs.';
comment on column private.leases.priority is 'As in jobs.';
comment on column private.leases.run_at is 'As in jobs.';
comment on column private.leases.cost is 'Work in units of one 1024 x 1024 image at 25 steps.';
comment on column private.leases.fair_key is 'Virtual end time: orders jobs fairly between users (self-clocked fair queueing).';
comment on column private.leases.token is 'Chosen by the worker for each claim; every write of the worker must carry it. Stays when the lease has ended.';
comment on column private.leases.worker is 'The worker that claimed it last.';
comment on column private.leases.expires_at is 'Until when the lease holds unless a heartbeat renews it; absent while nobody holds it.';
comment on column private.leases.claims is
  'How often the job was claimed, ever. Part of every object''s name, so that no two leases write to one object.';
comment on column private.leases.crashes is 'Workers in a row that died while painting this job; the second one fails it as poison_job.';
comment on column private.leases.faulted_on is 'Workers that gave it back as faulted or crashed, in their order.';
comment on column private.leases.avoid_until is 'Until then the workers of faulted_on pass over it, because another one may take it.';

-- Where the sweep for orphaned objects goes on; one row. See sweep_orphans.
create table private.sweep (
  only_row boolean primary key default true check (only_row),
  bucket   text not null default '',
  path     text not null default '',
  next_at  timestamptz not null default now()
);
insert into private.sweep default values;
comment on table private.sweep is 'Where the sweep for orphaned objects goes on; one row.';
comment on column private.sweep.only_row is 'Keeps it at one row.';
comment on column private.sweep.bucket is 'The bucket of the object that was looked at last.';
comment on column private.sweep.path is 'The path of the object that was looked at last.';
comment on column private.sweep.next_at is 'Not before then again.';
