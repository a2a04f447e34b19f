// One picture with all that is known of it, and what can be done with it.

import { Alert, Button, Flex, Group, Modal, Stack, Text } from '@mantine/core'
import { useHotkeys, useMediaQuery } from '@mantine/hooks'
import { IconArrowLeft, IconArrowRight, IconDownload, IconPencil, IconPhotoPlus } from '@tabler/icons-react'
import { useState } from 'react'
import { useServices } from '../services.ts'
import { describe } from '../words.ts'
import { DeleteButton } from './DeleteButton.tsx'
import { FullPicture } from './FullPicture.tsx'
import { Parameters } from './Parameters.tsx'
import type { Finished } from './tiles.ts'

interface Props {
  picture: Finished
  /** To the neighbours, where there are any. */
  onNewer: (() => void) | undefined
  onOlder: (() => void) | undefined
  onAgain(picture: Finished): void
  onReference(picture: Finished): void
  onClose(): void
}

export default function Viewer({ picture, onNewer, onOlder, onAgain, onReference, onClose }: Props) {
  const { pictures } = useServices()
  const [failure, setFailure] = useState<string>()
  const isNarrow = useMediaQuery('(max-width: 48em)')
  useHotkeys([
    ['ArrowLeft', () => onNewer?.()],
    ['ArrowRight', () => onOlder?.()],
  ])
  const { job, image } = picture

  const download = async (): Promise<void> => {
    setFailure(undefined)
    try {
      const url = await pictures.of(image)
      const answer = await fetch(url?.url ?? '')
      if (!answer.ok) throw new Error(answer.statusText)
      const link = document.createElement('a')
      link.href = URL.createObjectURL(await answer.blob())
      // the file itself has the parameters in it, unless the job kept them out
      link.download = `${job.created_at.slice(0, 10)}-${image.seed}.${image.path.split('.').at(-1)}`
      link.click()
      URL.revokeObjectURL(link.href)
    } catch {
      setFailure('The picture could not be fetched; try again in a moment.')
    }
  }

  return (
    <Modal
      opened
      onClose={onClose}
      fullScreen={isNarrow === true}
      size="75rem"
      title={<Text truncate>{describe(job, image.index)}</Text>}
      styles={{ title: { minWidth: 0 } }}
      closeButtonProps={{ 'aria-label': 'Close' }}
    >
      <Flex gap="lg" direction={{ base: 'column', md: 'row' }}>
        <Flex flex={3} miw={0} justify="center" align="flex-start">
          <FullPicture picture={picture} />
        </Flex>
        <Stack flex={2} miw={0}>
          <Group gap="xs">
            <Button leftSection={<IconDownload size={18} />} onClick={() => void download()}>
              Download
            </Button>
            <Button variant="default" leftSection={<IconPencil size={18} />} onClick={() => onAgain(picture)}>
              Again with these settings
            </Button>
            <Button variant="default" leftSection={<IconPhotoPlus size={18} />} onClick={() => onReference(picture)}>
              Start from this
            </Button>
            <DeleteButton key={job.id} job={job} onFailed={setFailure} />
          </Group>
          {failure && (
            <Alert color="red" role="alert">
              {failure}
            </Alert>
          )}
          {job.warnings.map(({ code, message }) => (
            <Alert key={code} color="yellow">
              {message}
            </Alert>
          ))}
          <Parameters pictures={[picture]} />
          <Group gap="xs">
            <Button variant="subtle" disabled={!onNewer} leftSection={<IconArrowLeft size={18} />} onClick={onNewer}>
              Newer
            </Button>
            <Button variant="subtle" disabled={!onOlder} rightSection={<IconArrowRight size={18} />} onClick={onOlder}>
              Older
            </Button>
          </Group>
        </Stack>
      </Flex>
    </Modal>
  )
}
