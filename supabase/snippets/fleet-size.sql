-- How many workers may be asked for, and when do they go? Change it in the table editor, or here; max_workers 0 switches it off.
select * from public.fleet_settings order by target_worker;
-- update public.fleet_settings set max_workers = 3, idle_minutes = 10 where target_worker = 'sdxl';
