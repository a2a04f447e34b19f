// All pictures, the newest first. Only the rows in view are in the page, so that a thousand scroll as well as ten.

import { Alert, Button, Center, EmptyState, Group, Loader, Stack } from '@mantine/core'
import { useElementSize, useMergedRef } from '@mantine/hooks'
import { IconPhoto } from '@tabler/icons-react'
import { useWindowVirtualizer } from '@tanstack/react-virtual'
import { useEffect, useMemo, useRef } from 'react'
import { useJobs, useList } from '../jobs.ts'
import { useServices } from '../services.ts'
import { sentence } from '../words.ts'
import classes from './gallery.module.css'
import { TileView } from './TileView.tsx'
import { type Finished, tilesOf } from './tiles.ts'

const LEAST_WIDTH = 168
const GAP = 12
const CAPTION = 28
/** Rows that are loaded before they are reached. */
const AHEAD = 4

interface Props {
  chosen: readonly string[]
  onOpen(key: string): void
  onChoose(tile: Finished): void
  onExample(prompt: string): void
}

export function Gallery({ chosen, onOpen, onChoose, onExample }: Props) {
  const { config } = useServices()
  const jobs = useJobs()
  const list = useList()
  const element = useRef<HTMLUListElement>(null)
  const { ref: measured, width } = useElementSize<HTMLUListElement>()
  const ref = useMergedRef(element, measured)
  const tiles = useMemo(() => list.jobs.flatMap(tilesOf), [list.jobs])

  const columns = Math.max(2, Math.floor((width + GAP) / (LEAST_WIDTH + GAP)))
  const side = (width - (columns - 1) * GAP) / columns
  const rows = width ? Math.ceil(tiles.length / columns) : 0
  const virtual = useWindowVirtualizer({
    count: rows,
    estimateSize: () => side + CAPTION + GAP,
    overscan: 3,
    scrollMargin: element.current?.offsetTop ?? 0,
  })
  // biome-ignore lint/correctness/useExhaustiveDependencies: another width makes other rows
  useEffect(() => virtual.measure(), [side])

  const shown = virtual.getVirtualItems()
  const last = shown.at(-1)?.index ?? -1
  // before the width is known nothing is shown yet, and a first page is wanted all the same
  const isNear = last >= rows - 1 - AHEAD && (width > 0 || tiles.length === 0)
  const wantsMore = isNear && !list.isLoading && !list.isComplete && !list.failure
  useEffect(() => {
    if (wantsMore) void jobs.more()
  }, [wantsMore, jobs])

  if (!tiles.length && list.isComplete) {
    return (
      <EmptyState
        className={classes.empty ?? ''}
        icon={<IconPhoto size={48} stroke={1.2} />}
        title="No pictures yet"
        description="Say what you would like to see. It will appear here while it is painted."
      >
        <EmptyState.Actions>
          <Group justify="center" gap="xs">
            {config.examples.map((example) => (
              <Button key={example} variant="default" size="xs" onClick={() => onExample(example)}>
                {example}
              </Button>
            ))}
          </Group>
        </EmptyState.Actions>
      </EmptyState>
    )
  }
  return (
    <Stack gap="md">
      <ul ref={ref} className={classes.list} style={{ height: virtual.getTotalSize() }} aria-label="Your pictures">
        {shown.flatMap((row) =>
          tiles
            .slice(row.index * columns, (row.index + 1) * columns)
            .map((tile, column) => (
              <TileView
                key={tile.key}
                tile={tile}
                left={column * (side + GAP)}
                top={row.start - virtual.options.scrollMargin}
                width={side}
                isChosen={chosen.includes(tile.key)}
                onOpen={onOpen}
                onChoose={onChoose}
              />
            )),
        )}
      </ul>
      {list.failure ? (
        <Alert color="red" role="alert">
          <Group justify="space-between">
            {sentence(list.failure)}
            <Button size="xs" variant="default" onClick={() => void jobs.more()}>
              Try again
            </Button>
          </Group>
        </Alert>
      ) : (
        !list.isComplete && (
          <Center p="md">
            <Loader size="sm" aria-label="Loading" />
          </Center>
        )
      )}
    </Stack>
  )
}
