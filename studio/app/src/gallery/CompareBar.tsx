// What has been chosen to be compared, always at hand.

import { Affix, Button, CloseButton, Group, Paper, Text } from '@mantine/core'
import { IconColumns2 } from '@tabler/icons-react'
import type { Finished } from './tiles.ts'

interface Props {
  chosen: readonly Finished[]
  onCompare(): void
  onClear(): void
}

export function CompareBar({ chosen, onCompare, onClear }: Props) {
  if (!chosen.length) return null
  return (
    <Affix position={{ bottom: 16, left: 16, right: 16 }} withinPortal={false}>
      <Paper withBorder shadow="md" p="sm" maw={420} mx="auto">
        <Group justify="space-between" wrap="nowrap">
          {chosen.length < 2 ? (
            <Text size="sm" role="status">
              Choose another one to compare it with.
            </Text>
          ) : (
            <Button leftSection={<IconColumns2 size={18} />} onClick={onCompare}>
              Compare the two
            </Button>
          )}
          <CloseButton aria-label="Choose none" onClick={onClear} />
        </Group>
      </Paper>
    </Affix>
  )
}
