// RunPod, as much of it as a fleet needs: pods by https://docs.runpod.io/api-reference-v2, requests to an endpoint by
// https://docs.runpod.io/serverless/endpoints/send-requests.

const PAUSES_MS = [500, 2000]
const LONGEST_PAUSE_MS = 5000 // whoever is to wait longer is asked again by the database
const WORDS = 300 // characters of an answer that are kept
// What a GPU type may be refused with while the next one is not: no capacity, which is a 400 like any broken rule and has no code of
// its own, or a pool that the account may not use. See "Which failures are worth retrying" of createPod.
const NEXT_GPU = [400, 403]

/** What went wrong, in words that may be shown to an operator. */
export class RunPodError extends Error {
  override readonly name = 'RunPodError'
  constructor(message: string, readonly retryable: boolean, readonly status = 0, readonly waitMs = 0) {
    super(message)
  }
}

/** What RunPod calls the thing that was started. */
export interface Started {
  provider: 'pod' | 'serverless'
  id: string
}

interface Pod {
  id: string
  name: string
  status: string
}

const words = (text: string): string => {
  try {
    const { detail, errors, error } = JSON.parse(text) // error: how an endpoint says it
    const all = [detail ?? error, ...(Array.isArray(errors) ? errors : [])].filter((one) => typeof one === 'string')
    return (all.join('; ') || text).slice(0, WORDS)
  } catch {
    return text.slice(0, WORDS)
  }
}

function named(answer: unknown): string {
  const id = (answer as { id?: unknown } | null)?.id
  if (typeof id !== 'string' || !id) throw new RunPodError('RunPod said yes and named nothing', true)
  return id
}

function podsOf(answer: unknown): Pod[] {
  const pods = (answer as { pods?: unknown } | null)?.pods
  if (!Array.isArray(pods)) throw new RunPodError('RunPod listed its pods in a form that is not known', false)
  return pods
}

const list = (text: string | undefined): string[] | undefined => text?.split(',').map((one) => one.trim()).filter(Boolean)

/** The account that the settings name. All of its calls together end with the deadline. */
export class RunPod {
  readonly #timeoutSeconds = Number(this.#setting('RUNPOD_TIMEOUT_SECONDS') ?? 10)
  readonly #deadline: AbortSignal

  constructor(deadline: AbortSignal) {
    this.#deadline = deadline
  }

  /**
   * Starts a pod, or sends a request to the serverless endpoint where one is set. What an earlier attempt may have started is looked for
   * first, since a lost reply is no failure; where it is not needed any more that is all, and null says that there is none.
   */
  start(startId: string, target: string, { attempt, needed }: { attempt: number; needed: boolean }): Promise<Started | null> {
    const endpoint = this.#setting('RUNPOD_ENDPOINT_ID')
    if (endpoint) return this.#patiently(() => needed ? this.#request(endpoint, startId, target) : Promise.resolve(null))
    const name = `ourvidz-${target}-${startId}`
    return this.#patiently(async (tries) => {
      const there = attempt > 1 || tries > 0 ? await this.#find(name) : undefined
      if (there || !needed) return there ?? null
      return { provider: 'pod', id: await this.#make(name, target) }
    })
  }

  /** RunPod is asked for one GPU type at a time: the preferred one first, and the next where that one is not to be had. */
  async #make(name: string, target: string): Promise<string> {
    const gpus = list(this.#needed('RUNPOD_GPU_TYPES')) ?? []
    let refusal = new RunPodError('RUNPOD_GPU_TYPES names none', false)
    for (const gpu of gpus) {
      try {
        return named(await this.#ask('POST', `${this.#rest}/pods`, this.#pod(name, target, gpu)))
      } catch (error) {
        if (!(error instanceof RunPodError && NEXT_GPU.includes(error.status))) throw error
        refusal = new RunPodError(`${error.message} (for ${gpu}, the last of ${gpus.length})`, false, error.status)
      }
    }
    throw refusal
  }

  /** Removes a pod. One that is gone already counts as removed. */
  async stop(podId: string): Promise<void> {
    await this.#patiently(async () => {
      try {
        await this.#ask('DELETE', `${this.#rest}/pods/${encodeURIComponent(podId)}`)
      } catch (error) {
        if (!(error instanceof RunPodError && error.status === 404)) throw error
      }
    })
  }

  /** The pod of that name, out of all. Should there be several, since RunPod had not listed the first one yet, the others go. */
  async #find(name: string): Promise<Started | undefined> {
    const pods = podsOf(await this.#ask('GET', `${this.#rest}/pods`))
    const [first, ...others] = pods.filter((pod) => pod.name === name && pod.status !== 'TERMINATED')
    for (const other of others) await this.stop(other.id)
    return first && { provider: 'pod', id: first.id }
  }

  async #request(endpoint: string, startId: string, target: string): Promise<Started> {
    const base = this.#setting('RUNPOD_SERVERLESS_URL') ?? 'https://api.runpod.ai/v2'
    const seconds = Number(this.#setting('RUNPOD_EXECUTION_SECONDS') ?? 3600)
    const answer = await this.#ask('POST', `${base}/${encodeURIComponent(endpoint)}/run`, {
      // it ends by itself, and gives back what it holds, before RunPod ends it
      input: { start_id: startId, target_worker: target, seconds: Math.max(1, seconds - 30) },
      policy: { executionTimeout: 1000 * seconds },
    })
    return { provider: 'serverless', id: named(answer) }
  }

  /** The template has the rest. Its environment stays but for what is named here, so that one template serves all targets. */
  #pod(name: string, target: string, gpu: string): Record<string, unknown> {
    const volume = this.#setting('RUNPOD_VOLUME_ID')
    return {
      name,
      templateId: this.#needed('RUNPOD_TEMPLATE_ID'),
      cloud: this.#setting('RUNPOD_CLOUD_TYPE') ?? 'SECURE',
      gpu: {
        id: gpu,
        count: Number(this.#setting('RUNPOD_GPU_COUNT') ?? 1),
        minCudaVersion: this.#setting('RUNPOD_MIN_CUDA_VERSION') ?? '13.0', // what the torch of our image is built for
      },
      dataCenterIds: list(this.#setting('RUNPOD_DATA_CENTERS')),
      ...(volume && { mounts: { network: [{ volumeId: volume, path: this.#setting('RUNPOD_VOLUME_PATH') ?? '/workspace' }] } }),
      env: { TARGET_WORKER: target },
    }
  }

  get #rest(): string {
    return this.#setting('RUNPOD_REST_URL') ?? 'https://api.runpod.io/v2'
  }

  #setting(name: string): string | undefined {
    return Deno.env.get(name)?.trim() || undefined
  }

  #needed(name: string): string {
    const value = this.#setting(name)
    if (!value) throw new RunPodError(`${name} is not set for the Edge Functions`, false)
    return value
  }

  /** Does it again, twice at most, while RunPod stumbles. What lasts longer is the database's to try again. */
  async #patiently<T>(act: (tries: number) => Promise<T>): Promise<T> {
    for (let tries = 0;; tries++) {
      try {
        return await act(tries)
      } catch (error) {
        const pause = PAUSES_MS[tries]
        if (!(error instanceof RunPodError && error.retryable) || pause === undefined || this.#deadline.aborted) throw error
        if (error.waitMs > LONGEST_PAUSE_MS) throw error
        await new Promise((resolve) => setTimeout(resolve, Math.max(pause, error.waitMs)))
      }
    }
  }

  async #ask(method: string, url: string, body?: unknown): Promise<unknown> {
    const key = this.#needed('RUNPOD_API_KEY')
    const signal = AbortSignal.any([AbortSignal.timeout(1000 * this.#timeoutSeconds), this.#deadline])
    const answer = await fetch(url, {
      method,
      // a connection of its own: on one that was kept, Deno sends a POST a second time by itself when the reply is lost (measured)
      headers: { Authorization: `Bearer ${key}`, 'Content-Type': 'application/json', Connection: 'close' },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    }).then(async (response) => ({
      status: response.status,
      waitMs: 1000 * (Number(response.headers.get('Retry-After')) || 0),
      text: await response.text(),
    })).catch(() => {
      throw new RunPodError(signal.aborted ? 'RunPod did not answer in time' : 'RunPod could not be reached', true)
    })
    const { status, waitMs, text } = answer
    if (status >= 200 && status < 300) return text ? JSON.parse(text) : null
    const passing = status === 408 || status === 429 || status >= 500
    throw new RunPodError(`RunPod answered ${status}: ${words(text)}`, passing, status, waitMs)
  }
}
