-- Buckets, all private. Object names start with their owner's id: <user_id>/<job_id>/<claim>-<index>.png
-- The worker writes with the service key, which row security does not bind.

insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types) values
  ('sdxl_image_fast', 'sdxl_image_fast', false, 52428800, array['image/png', 'image/webp', 'image/jpeg']),
  ('sdxl_image_high', 'sdxl_image_high', false, 52428800, array['image/png', 'image/webp', 'image/jpeg']),
  ('reference_images', 'reference_images', false, 20971520, array['image/png', 'image/webp', 'image/jpeg'])
on conflict (id) do update
  set public = excluded.public, file_size_limit = excluded.file_size_limit, allowed_mime_types = excluded.allowed_mime_types;

-- An output can be read once its job has published it. What a worker uploaded and never finished stays unseen.
create policy "read your own published images" on storage.objects for select to authenticated
  using (
    bucket_id in ('sdxl_image_fast', 'sdxl_image_high')
    and (storage.foldername(name))[1] = (select auth.uid())::text
    and exists (select from public.job_images i where i.bucket = bucket_id and (i.path = name or i.thumbnail_path = name))
  );
create policy "read your own references" on storage.objects for select to authenticated
  using (bucket_id = 'reference_images' and (storage.foldername(name))[1] = (select auth.uid())::text);
create policy "upload references to your own folder" on storage.objects for insert to authenticated
  with check (bucket_id = 'reference_images' and (storage.foldername(name))[1] = (select auth.uid())::text);
create policy "delete your own references" on storage.objects for delete to authenticated
  using (bucket_id = 'reference_images' and (storage.foldername(name))[1] = (select auth.uid())::text);
