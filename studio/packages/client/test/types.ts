// What the types allow and what they do not. Never run: `make check` compiles it.

import { createSDXLClient, type Database, submitSDXLJob, validateSDXLParams, watchJob } from '@ourvidz/sdxl-client'
import { createClient } from '@supabase/supabase-js'

interface Cats {
  public: {
    Tables: { cats: { Row: { name: string }; Insert: { name: string }; Update: { name?: string }; Relationships: [] } }
    Views: object
    Functions: object
  }
}
const untyped = createClient('https://example.com', 'key')
const ours = createClient<Database>('https://example.com', 'key')
const theirs = createClient<Cats>('https://example.com', 'key')

for (const supabase of [createSDXLClient(untyped), createSDXLClient(ours), createSDXLClient(theirs)]) {
  const job = await supabase.submitSDXLJob({ job_type: 'sdxl_image_fast', batch_size: 3, metadata: { fit: 'cover', mine: [1] } })
  job.status satisfies 'queued' | 'processing' | 'completed' | 'failed' | 'cancelled'
  // @ts-expect-error 2 is no batch size
  await supabase.submitSDXLJob({ job_type: 'sdxl_image_fast', batch_size: 2 })
  // @ts-expect-error the job type is required
  await supabase.submitSDXLJob({ prompt: 'a cat' })
  // @ts-expect-error the lease is not in the row
  job.lease_token
}
// @ts-expect-error a client may not choose its priority
await submitSDXLJob(ours, { job_type: 'sdxl_image_fast', priority: 1 })
for await (const event of watchJob(theirs, 'id', { signal: AbortSignal.timeout(1000) })) {
  if (event.type === 'preview') event.image satisfies Blob
  if (event.type === 'state') event.job.images[0]?.path satisfies string | undefined
}
validateSDXLParams({ job_type: 'sdxl_image_high' })?.prompt?.[0]?.message satisfies string | undefined
