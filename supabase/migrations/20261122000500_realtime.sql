-- Who may listen to what. Nobody but the database and the workers (service key) may send, so there is no policy for INSERT.
--   worker:<target>  wake and cancel, for workers only; worker:<target>:<0..31>  wake, for some of them
--   user:<user id>   every change of that user's jobs
--   job:<job id>     progress and previews of one job

create policy "listen to your own topics" on realtime.messages for select to authenticated
  using (
    extension = 'broadcast'
    and case
      when (select realtime.topic()) ~ '^job:[0-9a-f-]{36}$' then
        exists (select from public.jobs j
                 where j.id = substr((select realtime.topic()), 5)::uuid and j.user_id = (select auth.uid()))
      else (select realtime.topic()) = 'user:' || (select auth.uid())
    end
  );

-- For frontends that listen with postgres_changes. A publication FOR ALL TABLES, as early projects have it, refuses further tables.
do $$ begin
  if not exists (select from pg_publication where pubname = 'supabase_realtime' and puballtables) then
    alter publication supabase_realtime add table public.jobs, public.job_images;
  end if;
end $$;
