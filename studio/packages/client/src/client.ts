// All functions with the client put in already, for who calls them from many places.

import { cancelJob, deleteEverything, deleteJob, getJob, listJobs, queuePosition, retryJob, submitSDXLJob } from './jobs.ts'
import { imageUrls, uploadReference } from './storage.ts'
import type { Supabase } from './types.ts'
import { watchJobs } from './user.ts'
import { watchJob } from './watch.ts'

interface Functions {
  submitSDXLJob: typeof submitSDXLJob
  watchJob: typeof watchJob
  watchJobs: typeof watchJobs
  getJob: typeof getJob
  listJobs: typeof listJobs
  cancelJob: typeof cancelJob
  deleteJob: typeof deleteJob
  deleteEverything: typeof deleteEverything
  retryJob: typeof retryJob
  queuePosition: typeof queuePosition
  uploadReference: typeof uploadReference
  imageUrls: typeof imageUrls
}

export type SDXLClient = {
  [name in keyof Functions]: Functions[name] extends (supabase: Supabase, ...rest: infer Rest) => infer Result
    ? (...rest: Rest) => Result
    : never
}

/** `const { submitSDXLJob, watchJob } = createSDXLClient(supabase)`; the functions by themselves take `supabase` first. */
export function createSDXLClient(supabase: Supabase): SDXLClient {
  const functions: Functions = {
    submitSDXLJob,
    watchJob,
    watchJobs,
    getJob,
    listJobs,
    cancelJob,
    deleteJob,
    deleteEverything,
    retryJob,
    queuePosition,
    uploadReference,
    imageUrls,
  }
  return Object.fromEntries(
    Object.entries(functions).map(([name, act]) => [name, (act as (...all: unknown[]) => unknown).bind(null, supabase)]),
  ) as SDXLClient
}
