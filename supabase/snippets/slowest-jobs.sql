-- Which jobs of the last 24 hours took the longest, and where did the time go?
select job_id, job_type, batch_size, status, wait_seconds, run_seconds, gpu_seconds, run_seconds - gpu_seconds as beside_the_gpu_seconds,
       attempts, worker, trace_id
  from public.job_audit
 where asked_at > now() - interval '1 day' and run_seconds is not null
 order by run_seconds desc limit 50;
