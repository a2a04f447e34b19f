// Asking for pictures. The rules are the database's: the client knows them by name, and says each in words.

import { ActionIcon, Alert, Button, Group, Input, NativeSelect, SegmentedControl, Stack, Textarea, TextInput } from '@mantine/core'
import { SDXLError, type SDXLField, type SDXLJob, validateSDXLParams } from '@ourvidz/sdxl-client'
import { IconChevronDown, IconChevronUp, IconDice5 } from '@tabler/icons-react'
import { type FormEvent, type KeyboardEvent, lazy, Suspense, useRef, useState } from 'react'
import { useServices } from '../services.ts'
import { JOB_TYPES, sentence, sizeWord } from '../words.ts'
import classes from './form.module.css'
import { ReferenceField } from './ReferenceField.tsx'
import { paramsOf, type Wish } from './wish.ts'

const More = lazy(() => import('./More.tsx'))
const MORE: (keyof Wish | SDXLField)[] = ['negative_prompt', 'steps', 'guidance_scale', 'scheduler', 'output_format', 'metadata']

export interface FormProps {
  wish: Wish
  change(change: Partial<Wish>): void
  faultOf(field: SDXLField): string | undefined
}

interface Props extends Pick<FormProps, 'wish' | 'change'> {
  onSubmitted(job: SDXLJob): void
}

export function Form({ wish, change, onSubmitted }: Props) {
  const { config, sdxl } = useServices()
  const form = useRef<HTMLFormElement>(null)
  const [isTried, setTried] = useState(false)
  const [isBusy, setBusy] = useState(false)
  const [isOpen, setOpen] = useState(false)
  const [refusal, setRefusal] = useState<SDXLError | Error>()

  const params = paramsOf(wish)
  const faults = isTried ? validateSDXLParams(params) : null
  const faultOf = (field: SDXLField): string | undefined =>
    faults?.[field]?.[0]?.message ?? (refusal instanceof SDXLError && refusal.field === field ? refusal.message : undefined)
  const isShownAtField = refusal instanceof SDXLError && refusal.field

  const edit = (edited: Partial<Wish>): void => {
    setRefusal(undefined)
    change(edited)
  }

  const submit = async (event?: FormEvent): Promise<void> => {
    event?.preventDefault()
    setTried(true)
    setRefusal(undefined)
    const found = validateSDXLParams(params)
    if (found) {
      if (MORE.some((field) => field in found)) setOpen(true)
      // the first of them comes into view, once it is marked
      requestAnimationFrame(() => form.current?.querySelector<HTMLElement>('[aria-invalid="true"]')?.focus())
      return
    }
    setBusy(true)
    try {
      onSubmitted(await sdxl.submitSDXLJob(params))
      setTried(false)
    } catch (error) {
      setRefusal(error as Error)
    }
    setBusy(false)
  }
  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) void submit()
  }

  const sizes = config.sizes.map(([width, height]) => ({ value: `${width}x${height}`, label: sizeWord(width, height) }))
  if (wish.size && !sizes.some(({ value }) => value === wish.size)) {
    const [width, height] = wish.size.split('x').map(Number) as [number, number]
    sizes.push({ value: wish.size, label: sizeWord(width, height) }) // of an earlier job
  }

  return (
    <form ref={form} onSubmit={submit} onKeyDown={onKeyDown} noValidate aria-label="A new picture">
      <Stack gap="md">
        <Textarea
          label="Prompt"
          placeholder={wish.exact_copy_mode ? 'not needed for an exact copy' : 'What should it show?'}
          autosize
          minRows={3}
          maxRows={10}
          value={wish.prompt}
          error={faultOf('prompt')}
          onChange={(event) => edit({ prompt: event.currentTarget.value })}
        />
        <ReferenceField wish={wish} change={edit} faultOf={faultOf} />
        <Group grow align="flex-start" gap="sm">
          <Input.Wrapper label="Quality" labelElement="div">
            <SegmentedControl
              fullWidth
              aria-label="Quality"
              data={Object.entries(JOB_TYPES).map(([value, label]) => ({ value, label: label.replace(' quality', '') }))}
              value={wish.job_type}
              onChange={(job_type) => edit({ job_type: job_type as Wish['job_type'] })}
            />
          </Input.Wrapper>
          <Input.Wrapper label="Pictures" labelElement="div">
            <SegmentedControl
              fullWidth
              aria-label="Pictures"
              data={['1', '3', '6']}
              value={String(wish.batch_size)}
              onChange={(batch_size) => edit({ batch_size: Number(batch_size) as Wish['batch_size'] })}
            />
          </Input.Wrapper>
        </Group>
        <NativeSelect
          label="Size"
          data={[{ value: '', label: wish.reference ? "The reference's shape" : "The model's own" }, ...sizes]}
          value={wish.size}
          error={faultOf('width') ?? faultOf('height')}
          onChange={(event) => edit({ size: event.currentTarget.value })}
        />
        <Group align="flex-end" gap="xs" wrap="nowrap">
          <TextInput
            flex={1}
            label="Seed"
            placeholder="a new one each time"
            inputMode="numeric"
            value={wish.seed}
            error={faultOf('seed')}
            onChange={({ currentTarget: { value } }) => edit({ seed: value ? Number(value.replace(/\D/g, '')) : '' })}
          />
          <ActionIcon
            size={36}
            variant="default"
            aria-label="Throw the dice"
            title="Throw the dice"
            onClick={() => edit({ seed: (crypto.getRandomValues(new Uint32Array(1))[0] as number) >>> 1 })}
          >
            <IconDice5 size={20} />
          </ActionIcon>
        </Group>
        <div>
          <Button
            variant="default"
            size="compact-sm"
            aria-expanded={isOpen}
            rightSection={isOpen ? <IconChevronUp size={16} /> : <IconChevronDown size={16} />}
            onClick={() => setOpen(!isOpen)}
          >
            More
          </Button>
          {isOpen && (
            <Suspense>
              <More wish={wish} change={edit} faultOf={faultOf} />
            </Suspense>
          )}
        </div>
        {refusal && !isShownAtField && (
          <Alert color="red" role="alert">
            {sentence(refusal)}
          </Alert>
        )}
        <Button type="submit" size="md" loading={isBusy} className={classes.submit ?? ''}>
          Paint
        </Button>
      </Stack>
    </form>
  )
}
