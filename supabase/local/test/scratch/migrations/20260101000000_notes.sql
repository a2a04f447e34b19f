-- A small project for the tests: notes that belong to users, with one column that only the service may read.
create schema private;

create table public.notes (
  id         bigint generated always as identity primary key,
  user_id    uuid not null default auth.uid() references auth.users (id) on delete cascade,
  body       text not null check (body <> ''),
  amount     integer,
  tags       text[] not null default '{}',
  data       jsonb,
  hidden     text,
  created_at timestamptz not null default now()
);
alter table public.notes enable row level security;
revoke all on public.notes from anon, authenticated;
grant select (id, user_id, body, amount, tags, data, created_at), insert, update (body, amount, hidden), delete on public.notes to authenticated;
create policy "own notes" on public.notes for all to authenticated using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));

create table public.open_by_default (id integer primary key);   -- nothing revoked: the API roles may use it, as on Supabase

create function public.add(a integer, b integer) returns integer language sql immutable as $$ select a + b $$;
create function public.whoami() returns jsonb language sql stable as $$
  select jsonb_build_object('uid', auth.uid(), 'role', auth.role(), 'user', current_user, 'anonymous', auth.jwt() -> 'is_anonymous',
                            'timeout', current_setting('statement_timeout'))
$$;
create function public.fail(code text) returns void language plpgsql as $$ begin raise exception 'as asked' using errcode = code, hint = 'a hint'; end $$;
create function public.slow(seconds float) returns void language sql as $$ select pg_sleep(seconds) $$;
create function public.for_service() returns text language sql as $$ select 'yes' $$;
revoke execute on function public.for_service() from public, anon, authenticated;

alter publication supabase_realtime add table public.notes;
