-- Who may touch what. Clients insert what they ask for, read what is theirs, and may only ask to cancel.
-- The restrictive policies bear their rule as a name, since Postgres prints the name of the one that refuses.

alter table public.jobs enable row level security;
alter table public.job_images enable row level security;
alter table public.job_events enable row level security;
alter table public.workers enable row level security;
alter table public.negative_presets enable row level security;
alter table public.retention enable row level security;

revoke all on public.jobs, public.job_images, public.job_events, public.workers, public.negative_presets, public.retention
  from anon, authenticated, service_role;
revoke all on sequence public.job_events_id_seq from anon, authenticated, service_role;   -- numbered by trigger alone
revoke all on private.leases, private.sweep from public, anon, authenticated, service_role;   -- a schema that was there may have default privileges

grant select on public.jobs, public.job_images, public.job_events to authenticated;
grant insert (id, user_id, job_type, target_worker, metadata, idempotency_key, prompt, negative_prompt, batch_size, width, height,
              steps, guidance_scale, seed, scheduler, output_format, reference_image_url, reference_image_path, reference_strength,
              exact_copy_mode, enhance_prompt, fallback_to_text, status)
  on public.jobs to authenticated;
grant update (cancel_requested_at) on public.jobs to authenticated;

grant select, insert, update, delete on public.jobs, public.job_images, public.workers to service_role;
grant select on public.job_events to service_role;
grant select, update on private.leases to service_role;
grant select, update on public.negative_presets, public.retention to service_role;

create policy "read your own jobs" on public.jobs for select to authenticated
  using (user_id = (select auth.uid()));
create policy "ask for a job when signed in" on public.jobs for insert to authenticated
  with check ((select auth.uid()) is not null);
create policy "user_id must be your own" on public.jobs as restrictive for insert to authenticated
  with check (user_id = (select auth.uid()));
create policy "status must be queued" on public.jobs as restrictive for insert to authenticated
  with check (status = 'queued');
create policy "cancel your own jobs" on public.jobs for update to authenticated
  using (user_id = (select auth.uid()) and status in ('queued', 'processing'))
  with check (user_id = (select auth.uid()));

create policy "read the images of your own jobs" on public.job_images for select to authenticated
  using (exists (select from public.jobs j where j.id = job_id and j.user_id = (select auth.uid())));
create policy "read the history of your own jobs" on public.job_events for select to authenticated
  using (exists (select from public.jobs j where j.id = job_id and j.user_id = (select auth.uid())));
