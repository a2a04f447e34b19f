export { createSDXLClient, type SDXLClient } from './client.ts'
export type { Database, Json } from './database.types.ts'
export { SDXLError, type SDXLErrorOptions, type SDXLFault } from './errors.ts'
export {
  cancelJob,
  deleteEverything,
  deleteJob,
  getJob,
  jobError,
  type ListOptions,
  listJobs,
  queuePosition,
  retryJob,
  submitSDXLJob,
} from './jobs.ts'
export { messageOf, type SDXLErrorCode } from './messages.ts'
export { imageUrls, type SDXLImageUrl, uploadReference } from './storage.ts'
export {
  isFinished,
  type SDXLField,
  type SDXLImage,
  type SDXLJob,
  type SDXLJobType,
  type SDXLMetadata,
  type SDXLParams,
  type SDXLScheduler,
  type SDXLStatus,
  type Supabase,
} from './types.ts'
export { type SDXLListEvent, watchJobs } from './user.ts'
export { type SDXLFaults, validateSDXLParams } from './validate.ts'
export { onWake } from './wake.ts'
export { type SDXLEvent, watchJob } from './watch.ts'
