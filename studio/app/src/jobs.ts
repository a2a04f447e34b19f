// The user's jobs as the page knows them: pages of the list, news from Realtime, and, of the jobs in view, how far they are.

import { isFinished, type SDXLClient, type SDXLJob } from '@ourvidz/sdxl-client'
import { createContext, useContext, useEffect, useSyncExternalStore } from 'react'

const PAGE = 24
const LOOK_AT_THE_QUEUE_MS = 4_000
const TRY_AGAIN_MS = 3_000

/** What is known of a job that has not ended, beside its row. */
export interface Live {
  step?: number
  total?: number
  /** How many jobs come first; null when it is not known. */
  ahead: number | null
  /** Object URLs of the small pictures so far, by the image's index. */
  previews: string[]
}
const NOTHING: Live = { ahead: null, previews: [] }

export interface List {
  /** The newest first. */
  jobs: SDXLJob[]
  /** A page of older ones is on its way. */
  isLoading: boolean
  /** Nothing older is left to load. */
  isComplete: boolean
  /** Why the last page could not be loaded. */
  failure: unknown
  /** Whether Realtime brings news; undefined until it was joined once. */
  isHeard: boolean | undefined
}

const isNewerFirst = (a: SDXLJob, b: SDXLJob): number =>
  a.created_at === b.created_at ? (a.id < b.id ? 1 : -1) : a.created_at < b.created_at ? 1 : -1

export class Jobs {
  readonly #sdxl: SDXLClient
  readonly #over = new AbortController()
  readonly #known = new Map<string, SDXLJob>()
  readonly #live = new Map<string, Live>()
  readonly #watched = new Map<string, { count: number; end: AbortController }>()
  readonly #listeners = new Set<() => void>()
  #list: List = { jobs: [], isLoading: false, isComplete: false, failure: undefined, isHeard: undefined }
  #oldest: SDXLJob | undefined
  #listings = 0

  constructor(sdxl: SDXLClient) {
    this.#sdxl = sdxl
  }

  list = (): List => this.#list
  live = (id: string): Live => this.#live.get(id) ?? NOTHING
  subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Listens until `end`, and lists what is new whenever something may have been missed. */
  async follow(): Promise<void> {
    const { signal } = this.#over
    while (!signal.aborted) {
      try {
        for await (const event of this.#sdxl.watchJobs({ signal })) {
          if (event.type === 'state') this.put(event.job)
          else if (event.type === 'deleted') this.remove(event.id)
          else this.#change({ isHeard: event.type === 'joined' })
          if (event.type !== 'joined') continue
          if (this.#list.failure) void this.more()
          void this.#newest()
        }
      } catch {
        await new Promise((resolve) => setTimeout(resolve, TRY_AGAIN_MS)) // signed out, or on the way there
      }
    }
  }

  end(): void {
    this.#over.abort()
    for (const { end } of this.#watched.values()) end.abort()
    for (const { previews } of this.#live.values()) for (const url of previews) URL.revokeObjectURL(url)
  }

  /** Takes a job as it was just read; a finished one never changes. */
  put(...jobs: SDXLJob[]): void {
    for (const job of jobs) {
      const known = this.#known.get(job.id)
      if (!known || !isFinished(known)) this.#known.set(job.id, job)
      if (isFinished(job)) this.#forget(job.id)
    }
    this.#change({ jobs: [...this.#known.values()].sort(isNewerFirst) })
  }

  /** They were deleted. */
  remove(...ids: string[]): void {
    for (const id of ids) {
      this.#known.delete(id)
      this.#forget(id)
    }
    this.#change({ jobs: this.#list.jobs.filter(({ id }) => !ids.includes(id)) })
  }

  /** The next page of older jobs, one at a time. */
  more = async (): Promise<void> => {
    if (this.#list.isLoading || this.#list.isComplete) return
    this.#change({ isLoading: true, failure: undefined })
    try {
      const jobs = await this.#sdxl.listJobs({ before: this.#oldest, limit: PAGE })
      this.#oldest = jobs.at(-1) ?? this.#oldest
      this.put(...jobs)
      this.#change({ isLoading: false, isComplete: jobs.length < PAGE })
    } catch (failure) {
      this.#change({ isLoading: false, failure })
    }
  }

  /** Lists what is new, and what may have changed or gone: down to a known job, and to the oldest one that had not ended. */
  async #newest(): Promise<void> {
    if (!this.#oldest && !this.#list.isComplete) return // the first page is not there yet, and will have it all
    const mine = ++this.#listings // a later one has it all, too
    const oldest = this.#list.jobs.findLast((job) => !isFinished(job))
    let last: SDXLJob | undefined
    let isMet = false
    while (mine === this.#listings && !this.#over.signal.aborted) {
      try {
        const known = this.#list.jobs
        const page = await this.#sdxl.listJobs({ before: last, limit: PAGE })
        isMet ||= page.some(({ id }) => this.#known.has(id))
        const isOnPage = (job: SDXLJob): boolean => {
          const end = page.length < PAGE ? undefined : page.at(-1)
          return (!last || isNewerFirst(job, last) > 0) && (!end || isNewerFirst(job, end) <= 0)
        }
        this.remove(...known.filter((job) => isOnPage(job) && !page.some(({ id }) => id === job.id)).map(({ id }) => id))
        this.put(...page)
        last = page.at(-1)
        if (!last || page.length < PAGE || (isMet && (!oldest || isNewerFirst(last, oldest) >= 0))) return
      } catch {
        await new Promise((resolve) => setTimeout(resolve, TRY_AGAIN_MS)) // Realtime is back, and REST is not yet
      }
    }
  }

  /** Follows one job while it is in view. Call what it returns when it is not any more. */
  watch(id: string): () => void {
    const watched = this.#watched.get(id) ?? { count: 0, end: new AbortController() }
    watched.count += 1
    this.#watched.set(id, watched)
    if (watched.count === 1) {
      void this.#follow(id, watched.end.signal)
      void this.#lookAtTheQueue(id, watched.end.signal)
    }
    return () => {
      watched.count -= 1
      if (watched.count) return
      watched.end.abort()
      this.#watched.delete(id)
    }
  }

  async #follow(id: string, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        for await (const event of this.#sdxl.watchJob(id, { signal })) {
          if (event.type === 'state') this.put(event.job)
          if (event.type === 'progress') this.#report(id, { step: event.step, total: event.total })
          if (event.type === 'preview') this.#preview(id, event.index, event.image)
        }
        return
      } catch {
        await new Promise((resolve) => setTimeout(resolve, TRY_AGAIN_MS))
      }
    }
  }

  async #lookAtTheQueue(id: string, signal: AbortSignal): Promise<void> {
    while (!signal.aborted && this.#known.get(id)?.status === 'queued') {
      const ahead = await this.#sdxl.queuePosition(id).catch(() => null)
      this.#report(id, { ahead })
      await new Promise((resolve) => setTimeout(resolve, LOOK_AT_THE_QUEUE_MS))
    }
  }

  #preview(id: string, index: number, image: Blob): void {
    const previews = [...this.live(id).previews]
    const before = previews[index]
    previews[index] = URL.createObjectURL(image)
    this.#report(id, { previews })
    if (before) URL.revokeObjectURL(before)
  }

  #report(id: string, news: Partial<Live>): void {
    const job = this.#known.get(id)
    if (!job || isFinished(job)) return
    this.#live.set(id, { ...this.live(id), ...news })
    this.#tell()
  }

  #forget(id: string): void {
    // the tile shows its last preview until the picture itself has come; after that nothing needs it
    const live = this.#live.get(id)
    this.#live.delete(id)
    if (live) setTimeout(() => live.previews.forEach(URL.revokeObjectURL), 10_000)
  }

  #change(change: Partial<List>): void {
    this.#list = { ...this.#list, ...change }
    this.#tell()
  }

  #tell(): void {
    for (const listener of this.#listeners) listener()
  }
}

export const JobsContext = createContext<Jobs | null>(null)

export function useJobs(): Jobs {
  const jobs = useContext(JobsContext)
  if (!jobs) throw new Error('outside of JobsContext')
  return jobs
}

export function useList(): List {
  const jobs = useJobs()
  return useSyncExternalStore(jobs.subscribe, jobs.list)
}

/** How far a job is, while this is in view. */
export function useLive(job: SDXLJob): Live {
  const jobs = useJobs()
  const isActive = !isFinished(job)
  useEffect(() => (isActive ? jobs.watch(job.id) : undefined), [jobs, job.id, isActive])
  return useSyncExternalStore(jobs.subscribe, () => jobs.live(job.id))
}
