// A picture to start from: chosen, dropped anywhere on the page, or pasted.

import { ActionIcon, Button, FileButton, Group, Image, Paper, Slider, Stack, Switch, Text } from '@mantine/core'
import { IconPhotoPlus, IconX } from '@tabler/icons-react'
import { useEffect, useEffectEvent, useRef, useState } from 'react'
import { useServices } from '../services.ts'
import { sentence, strengthWord } from '../words.ts'
import type { Wish } from './wish.ts'

interface Props {
  wish: Wish
  change(change: Partial<Wish>): void
  faultOf(field: 'reference_image_path' | 'reference_strength' | 'exact_copy_mode'): string | undefined
}

const TYPES = 'image/png,image/jpeg,image/webp'
const fileOf = (transfer: DataTransfer | null): File | undefined => [...(transfer?.files ?? [])][0]

export function ReferenceField({ wish, change, faultOf }: Props) {
  const { sdxl, pictures } = useServices()
  const renewed = useRef('')
  const [state, setState] = useState<'idle' | 'over' | 'busy'>('idle')
  const [failure, setFailure] = useState<string>()

  const take = useEffectEvent(async (file: File | null | undefined): Promise<void> => {
    if (!file || state === 'busy') return
    setState('busy')
    setFailure(undefined)
    try {
      change({ reference: { path: await sdxl.uploadReference(file), url: URL.createObjectURL(file) } })
    } catch (error) {
      setFailure(sentence(error))
    }
    setState('idle')
  })

  useEffect(() => {
    const end = new AbortController()
    const on = <Name extends keyof DocumentEventMap>(name: Name, act: (event: DocumentEventMap[Name]) => void): void =>
      document.addEventListener(name, act, { signal: end.signal })
    on('dragover', (event) => {
      if (!event.dataTransfer?.types.includes('Files')) return
      event.preventDefault()
      setState((now) => (now === 'idle' ? 'over' : now))
    })
    on('dragleave', (event) => {
      if (!event.relatedTarget) setState((now) => (now === 'over' ? 'idle' : now))
    })
    on('drop', (event) => {
      const file = fileOf(event.dataTransfer)
      if (!file) return
      event.preventDefault()
      setState('idle')
      void take(file)
    })
    on('paste', (event) => {
      const file = fileOf(event.clipboardData)
      if (!file?.type.startsWith('image/')) return
      event.preventDefault()
      void take(file)
    })
    return () => end.abort()
  }, [])

  const { reference } = wish
  /** Its URL may have expired while the page slept. */
  const renew = async (): Promise<void> => {
    if (!reference || renewed.current === reference.path) return
    renewed.current = reference.path
    change({ reference: { ...reference, url: await pictures.reference(reference.path) } })
  }
  const fault = failure ?? faultOf('reference_image_path') ?? faultOf('exact_copy_mode')
  return (
    <Stack gap="xs" role="group" aria-label="Reference">
      {reference ? (
        <Group wrap="nowrap" align="flex-start">
          <Image
            src={reference.url}
            onError={() => void renew()}
            w={96}
            h={96}
            radius="sm"
            fit="cover"
            alt="The reference"
            fallbackSrc="data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'/>"
          />
          <Stack gap="xs" flex={1} miw={0}>
            <Switch
              label="Exact copy"
              description="keeps the picture; no prompt is needed"
              checked={wish.exact_copy_mode}
              onChange={(event) => change({ exact_copy_mode: event.currentTarget.checked })}
            />
            <Switch
              label="Paint without it if it cannot be used"
              checked={wish.fallback_to_text}
              onChange={(event) => change({ fallback_to_text: event.currentTarget.checked })}
            />
          </Stack>
          <ActionIcon variant="subtle" color="gray" aria-label="Remove the reference" onClick={() => change({ reference: null })}>
            <IconX size={18} />
          </ActionIcon>
        </Group>
      ) : (
        <Paper withBorder p="sm" bd={state === 'over' ? '2px dashed var(--mantine-primary-color-filled)' : undefined}>
          <FileButton accept={TYPES} onChange={(file) => void take(file)} inputProps={{ 'aria-label': 'Reference image' }}>
            {(props) => (
              <Button {...props} fullWidth variant="default" loading={state === 'busy'} leftSection={<IconPhotoPlus size={18} />}>
                Start from a picture
              </Button>
            )}
          </FileButton>
          <Text size="xs" c="dimmed" ta="center" mt={6}>
            {state === 'over' ? 'Let it fall' : 'or drop or paste one, or open one of yours'}
          </Text>
        </Paper>
      )}
      {fault && (
        <Text size="sm" c="red" role="alert">
          {fault}
        </Text>
      )}
      {reference && !wish.exact_copy_mode && (
        <div>
          <Group justify="space-between">
            <Text size="sm" fw={500} id="strength">
              Strength of the reference
            </Text>
            <Text size="sm" c="dimmed">
              {strengthWord(wish.reference_strength)}
            </Text>
          </Group>
          <Slider
            min={0}
            max={1}
            step={0.05}
            value={wish.reference_strength}
            label={(value) => value.toFixed(2)}
            onChange={(reference_strength) => change({ reference_strength })}
            thumbProps={{ 'aria-labelledby': 'strength' }}
          />
        </div>
      )}
    </Stack>
  )
}
