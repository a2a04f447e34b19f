// Waking: the page is in front again, was thawed, or is online again; or the clock has jumped, as it does when a laptop's lid is opened.

const TICK_MS = 2_000
const JUMP_MS = 10_000

/** Calls back whenever timers and connections may have stood still, until the returned function is called. */
export function onWake(act: () => void): () => void {
  const over = new AbortController()
  const wake = (): void => {
    if (globalThis.document?.visibilityState !== 'hidden') act()
  }
  // React Native has a window that hears nothing
  for (const name of ['online', 'pageshow']) globalThis.window?.addEventListener?.(name, wake, over)
  for (const name of ['visibilitychange', 'resume']) globalThis.document?.addEventListener?.(name, wake, over)
  let last = Date.now()
  const ticks = setInterval(() => {
    const now = Date.now()
    if (now - last > JUMP_MS) wake()
    last = now
  }, TICK_MS)
  return () => {
    clearInterval(ticks)
    over.abort()
  }
}
