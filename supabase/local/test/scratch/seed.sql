insert into public.open_by_default values (1), (2);
