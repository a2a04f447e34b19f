create policy "listen to your own topic" on realtime.messages for select to authenticated
  using (extension = 'broadcast' and (select realtime.topic()) in ('user:' || (select auth.uid()), 'room:shared'));
create policy "speak in the shared room" on realtime.messages for insert to authenticated
  with check (extension = 'broadcast' and (select realtime.topic()) = 'room:shared');

create function private.note_changed() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  perform realtime.broadcast_changes('user:' || coalesce(new.user_id, old.user_id), tg_op, tg_op, tg_table_name, tg_table_schema, new, old);
  return null;
end $$;
create trigger note_changed after insert or update or delete on public.notes for each row execute function private.note_changed();

insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types) values
  ('papers', 'papers', false, 1000, array['text/plain', 'image/png']), ('posters', 'posters', true, null, null);
create policy "read your own papers" on storage.objects for select to authenticated
  using (bucket_id = 'papers' and (storage.foldername(name))[1] = (select auth.uid())::text);
create policy "write your own papers" on storage.objects for insert to authenticated
  with check (bucket_id = 'papers' and (storage.foldername(name))[1] = (select auth.uid())::text);
create policy "replace your own papers" on storage.objects for update to authenticated
  using (bucket_id = 'papers' and (storage.foldername(name))[1] = (select auth.uid())::text);
create policy "remove your own papers" on storage.objects for delete to authenticated
  using (bucket_id = 'papers' and (storage.foldername(name))[1] = (select auth.uid())::text);
