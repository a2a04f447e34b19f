-- Who shall see workers and queue in Studio? Put in their address; they sign out and in again.
update auth.users set raw_app_meta_data = coalesce(raw_app_meta_data, '{}') || '{"role": "operator"}'
 where email = 'somebody@example.com'
returning id, email, raw_app_meta_data ->> 'role' as role;
