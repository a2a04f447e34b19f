-- What does every job of a type avoid? To change it: update public.negative_presets set negative_prompt = '…' where job_type = '…';
select p.job_type, p.negative_prompt, count(j.id) as jobs_in_the_last_day
  from public.negative_presets p
  left join public.jobs j on j.job_type = p.job_type and j.created_at > now() - interval '1 day'
 group by p.job_type, p.negative_prompt
 order by p.job_type;
