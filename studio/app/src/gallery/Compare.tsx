// Two pictures side by side.

import { Modal, SimpleGrid, Stack } from '@mantine/core'
import { FullPicture } from './FullPicture.tsx'
import { Parameters } from './Parameters.tsx'
import type { Finished } from './tiles.ts'

export default function Compare({ pictures, onClose }: { pictures: readonly Finished[]; onClose(): void }) {
  return (
    <Modal opened onClose={onClose} title="Compare" size="75rem" closeButtonProps={{ 'aria-label': 'Close' }}>
      <Stack>
        <SimpleGrid cols={2} spacing="sm">
          {pictures.map((picture) => (
            <FullPicture key={picture.key} picture={picture} />
          ))}
        </SimpleGrid>
        <Parameters pictures={pictures} />
      </Stack>
    </Modal>
  )
}
