// The page of who is signed in: the form on one side, the pictures on the other.

import { Alert, Container } from '@mantine/core'
import { useNetwork } from '@mantine/hooks'
import type { Session } from '@supabase/supabase-js'
import { lazy, Suspense, useEffect, useMemo, useRef, useState } from 'react'
import { Form } from './create/Form.tsx'
import { EMPTY, type Reference, type Wish, wishOf } from './create/wish.ts'
import { CompareBar } from './gallery/CompareBar.tsx'
import { Gallery } from './gallery/Gallery.tsx'
import { type Finished, isPicture, tilesOf } from './gallery/tiles.ts'
import { Header } from './Header.tsx'
import { Jobs, JobsContext, useJobs, useList } from './jobs.ts'
import { usePage } from './page.ts'
import classes from './Studio.module.css'
import { useServices } from './services.ts'
import { isOperator } from './session.ts'

// not needed for the first look
const Viewer = lazy(() => import('./gallery/Viewer.tsx'))
const Compare = lazy(() => import('./gallery/Compare.tsx'))
const Operator = lazy(() => import('./operator/Operator.tsx'))

export function Studio({ session }: { session: Session }) {
  const { sdxl } = useServices()
  const page = usePage()
  const [jobs, setJobs] = useState<Jobs>()
  useEffect(() => {
    const followed = new Jobs(sdxl)
    void followed.follow()
    setJobs(followed)
    return () => followed.end()
  }, [sdxl])
  return (
    <>
      <Header session={session} page={page} />
      <Container size="100rem" component="main" py="md" className={classes.main ?? ''}>
        {page === 'operator' && isOperator(session) ? (
          <Suspense>
            <Operator />
          </Suspense>
        ) : (
          jobs && (
            <JobsContext value={jobs}>
              <Workplace userId={session.user.id} />
            </JobsContext>
          )
        )}
      </Container>
    </>
  )
}

function Workplace({ userId }: { userId: string }) {
  const { pictures, drafts } = useServices()
  const jobs = useJobs()
  const list = useList()
  const { online } = useNetwork()
  const [wish, setWish] = useState<Wish>(() => drafts.get(userId) ?? EMPTY)
  useEffect(() => void drafts.set(userId, wish), [drafts, userId, wish])
  const [chosen, setChosen] = useState<readonly Finished[]>([])
  const [isComparing, setComparing] = useState(false)
  const [openKey, setOpenKey] = useState<string>()
  const form = useRef<HTMLDivElement>(null)
  const gallery = useRef<HTMLElement>(null)

  const all = useMemo(() => (openKey ? list.jobs.flatMap(tilesOf).filter(isPicture) : []), [openKey, list.jobs])
  const at = all.findIndex(({ key }) => key === openKey)
  const open = all[at]
  const to = (step: number): (() => void) | undefined => {
    const neighbour = all[at + step]
    if (neighbour) return () => setOpenKey(neighbour.key)
    return undefined
  }

  const change = (changed: Partial<Wish>): void => setWish((before) => ({ ...before, ...changed }))
  const fill = (changed: Partial<Wish>): void => {
    change(changed)
    setOpenKey(undefined)
    form.current?.scrollIntoView({ block: 'start' })
    form.current?.querySelector('textarea')?.focus({ preventScroll: true })
  }
  const again = async ({ job }: Finished): Promise<void> => {
    const path = job.reference_image_path
    const reference: Reference | null = path ? { path, url: await pictures.reference(path) } : null
    fill(wishOf(job, reference))
  }
  const startFrom = async ({ image }: Finished): Promise<void> => {
    const path = `${image.bucket}/${image.path}`
    fill({ reference: { path, url: await pictures.reference(path) } })
  }
  const choose = (tile: Finished): void =>
    setChosen((before) =>
      before.some(({ key }) => key === tile.key) ? before.filter(({ key }) => key !== tile.key) : [...before.slice(-1), tile],
    )

  return (
    <>
      {!online && (
        <Alert color="yellow" mb="md" role="status">
          You are offline. What you asked for is painted all the same, and comes when you are back.
        </Alert>
      )}
      {online && list.isHeard === false && (
        <Alert color="yellow" mb="md" role="status">
          News comes a little late at the moment. Nothing is lost.
        </Alert>
      )}
      <div className={classes.workplace}>
        <div ref={form} className={classes.form}>
          <Form
            wish={wish}
            change={change}
            onSubmitted={(job) => {
              jobs.put(job)
              const top = gallery.current?.getBoundingClientRect().top ?? 0
              if (top > window.innerHeight / 2 || top < 0) gallery.current?.scrollIntoView({ block: 'start' })
            }}
          />
        </div>
        <section ref={gallery} className={classes.gallery} aria-label="Gallery">
          <Gallery
            chosen={chosen.map(({ key }) => key)}
            onOpen={setOpenKey}
            onChoose={choose}
            onExample={(prompt) => fill({ prompt })}
          />
        </section>
      </div>
      <CompareBar chosen={chosen} onCompare={() => setComparing(true)} onClear={() => setChosen([])} />
      <Suspense>
        {open && (
          <Viewer
            picture={open}
            onNewer={to(-1)}
            onOlder={to(1)}
            onAgain={(picture) => void again(picture)}
            onReference={(picture) => void startFrom(picture)}
            onClose={() => setOpenKey(undefined)}
          />
        )}
        {isComparing && chosen.length === 2 && <Compare pictures={chosen} onClose={() => setComparing(false)} />}
      </Suspense>
    </>
  )
}
