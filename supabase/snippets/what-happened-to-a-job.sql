-- What happened to a job? Put its id in place of the zeros.
select job_id, status, history, wait_seconds, run_seconds, gpu_seconds, attempts, claims, worker, error_code, error_message, warnings,
       images, trace_id
  from public.job_audit
 where job_id = '00000000-0000-0000-0000-000000000000';
