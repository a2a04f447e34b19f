// Signed URLs, asked for together and kept while they last: tiles that appear at once cost one request a bucket.

import { onWake, type SDXLClient, type SDXLImage, type SDXLImageUrl } from '@ourvidz/sdxl-client'
import type { SupabaseClient } from '@supabase/supabase-js'
import { useEffect, useRef, useState } from 'react'
import { useServices } from './services.ts'

const RENEW_BEFORE_MS = 5 * 60_000
const TRY_AGAIN_MS = 5_000
const LONGEST_PAUSE_MS = 5 * 60_000
/** Tiles come into view one after the other; those of a moment ask together. */
const GATHER_MS = 20

const keyOf = (image: SDXLImage): string => `${image.bucket}/${image.path}`

export class Pictures {
  readonly #supabase: SupabaseClient
  readonly #sdxl: SDXLClient
  readonly #known = new Map<string, SDXLImageUrl>()
  /** Called after a sleep: timers stand still in it, and URLs expire all the same. */
  readonly shown = new Set<() => void>()
  #wanted: SDXLImage[] = []
  #asked: Promise<void> | undefined

  constructor(supabase: SupabaseClient, sdxl: SDXLClient) {
    this.#supabase = supabase
    this.#sdxl = sdxl
    onWake(() => {
      for (const load of this.shown) load()
    })
  }

  /** What is known and still good for a while. */
  at(image: SDXLImage): SDXLImageUrl | undefined {
    const url = this.#known.get(keyOf(image))
    return url && url.expiresAt.getTime() - Date.now() > RENEW_BEFORE_MS ? url : undefined
  }

  /** They do not work, whatever the clock says. */
  forget(image: SDXLImage): void {
    this.#known.delete(keyOf(image))
  }

  /** Throws an SDXLError when the URLs cannot be had. */
  async of(image: SDXLImage): Promise<SDXLImageUrl | undefined> {
    if (!this.at(image)) {
      this.#wanted.push(image)
      this.#asked ??= this.#ask()
      await this.#asked
    }
    return this.at(image)
  }

  /** Of a reference, as `reference_image_path` names it; null where there is none any more. */
  async reference(path: string): Promise<string | null> {
    const [, bucket = 'reference_images', object = path] = /^(reference_images|sdxl_image_\w+)\/(.*)$/.exec(path) ?? []
    const { data } = await this.#supabase.storage.from(bucket).createSignedUrl(object, 3600)
    return data?.signedUrl ?? null
  }

  async #ask(): Promise<void> {
    await new Promise((resolve) => setTimeout(resolve, GATHER_MS))
    const images = this.#wanted
    this.#wanted = []
    this.#asked = undefined
    for (const url of await this.#sdxl.imageUrls({ images })) this.#known.set(keyOf(url), url)
  }
}

export interface Shown {
  /** Undefined until they are there. */
  url: SDXLImageUrl | undefined
  /** Call it when an image could not be loaded from there. */
  onError(): void
}

/** The URLs of a picture, asked for again before they expire, after a sleep in which they may have, and after a failure. */
export function usePicture(image: SDXLImage | undefined): Shown {
  const { pictures } = useServices()
  const failed = useRef<() => void>(undefined)
  const [url, setUrl] = useState(image && pictures.at(image))
  // biome-ignore lint/correctness/useExhaustiveDependencies: the same path is the same picture, however often its row is read
  useEffect(() => {
    if (!image) return
    let timer: ReturnType<typeof setTimeout>
    let isOver = false
    let pauseMs = TRY_AGAIN_MS
    const load = async (): Promise<void> => {
      const loaded = await pictures.of(image).catch(() => undefined)
      if (isOver) return
      if (loaded) setUrl(loaded)
      clearTimeout(timer)
      timer = setTimeout(load, loaded ? loaded.expiresAt.getTime() - Date.now() - RENEW_BEFORE_MS : TRY_AGAIN_MS)
    }
    failed.current = () => {
      clearTimeout(timer)
      timer = setTimeout(() => {
        pictures.forget(image)
        void load()
      }, pauseMs)
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)
    }
    void load()
    pictures.shown.add(load)
    return () => {
      isOver = true
      pictures.shown.delete(load)
      clearTimeout(timer)
    }
  }, [image && keyOf(image), pictures])
  return { url, onError: () => failed.current?.() }
}
