-- How much does each user have in Storage? Names of objects begin with their owner's id.
select split_part(o.name, '/', 1) as user_id, u.email, o.bucket_id as bucket, count(*) as objects,
       pg_size_pretty(sum((o.metadata ->> 'size')::bigint)) as size
  from storage.objects o left join auth.users u on u.id::text = split_part(o.name, '/', 1)
 where o.bucket_id in ('sdxl_image_fast', 'sdxl_image_high', 'reference_images')
 group by 1, 2, 3
 order by sum((o.metadata ->> 'size')::bigint) desc nulls last limit 100;
