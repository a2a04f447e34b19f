// One picture from the moment it is asked for: its place in the queue, its steps, what it looks like so far, the picture; or why not.

import { Button, Checkbox, Group, Progress, Stack, Text, UnstyledButton } from '@mantine/core'
import { isFinished, jobError, type SDXLJob } from '@ourvidz/sdxl-client'
import { memo, useRef, useState } from 'react'
import { type Live, useJobs, useLive } from '../jobs.ts'
import { usePicture } from '../pictures.ts'
import { useServices } from '../services.ts'
import { describe, placeWord, promptOf, sentence } from '../words.ts'
import classes from './gallery.module.css'
import { type Finished, isPicture, type Tile } from './tiles.ts'

interface Props {
  tile: Tile
  /** In the list, in pixels. */
  left: number
  top: number
  width: number
  isChosen: boolean
  onOpen(key: string): void
  onChoose(tile: Finished): void
}

export const TileView = memo(function TileView({ tile, left, top, width, isChosen, onOpen, onChoose }: Props) {
  const { job, index } = tile
  const live = useLive(job)
  // the last small picture stays below until the real one has come
  const preview = useRef<string>(undefined)
  preview.current = live.previews[index] ?? preview.current
  return (
    <li
      className={classes.tile}
      style={{ width, transform: `translate(${left}px, ${top}px)` }}
      data-job={job.id}
      data-status={job.status}
    >
      <div
        className={`${classes.frame} ${isChosen ? classes.chosen : ''}`}
        style={preview.current && !isEnded(job) ? { backgroundImage: `url(${preview.current})` } : undefined}
        data-preview={preview.current ? 'yes' : undefined}
      >
        {isPicture(tile) ? (
          <Picture tile={tile} isChosen={isChosen} onOpen={onOpen} onChoose={onChoose} />
        ) : isEnded(job) ? (
          <Ended job={job} />
        ) : (
          index === 0 && <Underway job={job} live={live} />
        )}
      </div>
      <Text size="sm" c="dimmed" truncate mt={4}>
        {promptOf(job)}
      </Text>
    </li>
  )
})

const isEnded = (job: SDXLJob): boolean => isFinished(job) && job.status !== 'completed'

function Picture({ tile, isChosen, onOpen, onChoose }: Pick<Props, 'isChosen' | 'onOpen' | 'onChoose'> & { tile: Finished }) {
  const { url, onError } = usePicture(tile.image)
  const name = describe(tile.job, tile.index)
  return (
    <>
      {url?.thumbnailUrl && (
        <img className={classes.picture} src={url.thumbnailUrl} onError={onError} alt="" decoding="async" draggable={false} />
      )}
      {url && !url.thumbnailUrl && (
        <Text size="sm" p="sm">
          This picture is gone.
        </Text>
      )}
      <UnstyledButton className={classes.open ?? ''} aria-label={`Open: ${name}`} onClick={() => onOpen(tile.key)} />
      <Checkbox
        className={classes.choose ?? ''}
        aria-label={`Compare: ${name}`}
        checked={isChosen}
        onChange={() => onChoose(tile)}
      />
    </>
  )
}

function Underway({ job, live }: { job: SDXLJob; live: Live }) {
  const { sdxl } = useServices()
  const jobs = useJobs()
  const [failure, setFailure] = useState<string>()
  const [isAsked, setAsked] = useState(false)
  const isCancelling = isAsked || job.cancel_requested_at !== null
  const isPainting = job.status === 'processing'
  const percent = live.step && live.total ? (100 * live.step) / live.total : 0

  const cancel = async (): Promise<void> => {
    setAsked(true)
    try {
      jobs.put(await sdxl.cancelJob(job.id))
    } catch (error) {
      setAsked(false)
      setFailure(sentence(error))
    }
  }
  const word = isCancelling ? 'Cancelling' : isPainting ? stepWord(live) : placeWord(live.ahead)
  return (
    <Stack gap={6} className={classes.state ?? ''}>
      <Group justify="space-between" gap={4} wrap="nowrap">
        <Text size="sm" truncate role="status">
          {failure ?? word}
        </Text>
        <Button size="compact-xs" variant="default" disabled={isCancelling} onClick={() => void cancel()}>
          Cancel
        </Button>
      </Group>
      <Progress value={isPainting ? percent : 0} size="sm" aria-label="Progress" />
    </Stack>
  )
}

const stepWord = ({ step, total }: Live): string => (step && total ? `Step ${step} of ${total}` : 'Painting')

function Ended({ job }: { job: SDXLJob }) {
  const { sdxl } = useServices()
  const jobs = useJobs()
  const [failure, setFailure] = useState<string>()
  const [isBusy, setBusy] = useState(false)

  const act = async (action: () => Promise<void>): Promise<void> => {
    setBusy(true)
    await action().catch((error) => setFailure(sentence(error)))
    setBusy(false)
  }
  const retry = async (): Promise<void> => jobs.put(await sdxl.retryJob(job.id))
  const remove = async (): Promise<void> => {
    await sdxl.deleteJob(job.id)
    jobs.remove(job.id)
  }
  const word = job.status === 'cancelled' ? 'Cancelled' : (jobError(job)?.message ?? 'Failed')
  return (
    <Stack gap="xs" className={classes.ended ?? ''} align="flex-start">
      <Text size="sm" c={job.status === 'failed' ? 'red' : 'dimmed'} role="status">
        {failure ?? word}
      </Text>
      <Group gap="xs">
        <Button size="compact-sm" variant="default" loading={isBusy} onClick={() => void act(retry)}>
          {job.status === 'cancelled' ? 'Paint it after all' : 'Try again'}
        </Button>
        <Button size="compact-sm" variant="default" disabled={isBusy} onClick={() => void act(remove)}>
          Delete
        </Button>
      </Group>
    </Stack>
  )
}
