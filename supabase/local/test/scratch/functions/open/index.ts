// For everybody. ?do=… has it do something else than to answer.
const deeds: Record<string, () => unknown> = {
  env: () =>
    Object.fromEntries(
      ['SUPABASE_URL', 'SUPABASE_ANON_KEY', 'SUPABASE_SECRET_KEYS', 'GREETING'].map((name) => [name, Deno.env.get(name)]),
    ),
  read: () => Deno.readTextFileSync('/etc/passwd'),
  spawn: () => new Deno.Command('true').outputSync(),
  pid: () => Deno.pid,
  exit: () => Deno.exit(3),
  throw: () => {
    throw new Error('on purpose')
  },
}
Deno.serve({ port: 8000 }, (request) => Response.json(deeds[new URL(request.url).searchParams.get('do') ?? '']?.() ?? null))
