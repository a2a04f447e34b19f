// Says what came and what it finds around itself.
Deno.serve(async (request) => {
  const { method, url, headers } = request
  if (method === 'OPTIONS') {
    return new Response(null, { status: 204, headers: { 'Access-Control-Allow-Origin': 'https://mine.example' } })
  }
  return Response.json({
    method,
    path: new URL(url).pathname + new URL(url).search,
    authorization: headers.get('authorization'),
    body: await request.text(),
  })
})
