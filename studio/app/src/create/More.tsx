// What most people leave as it is.

import { NativeSelect, NumberInput, Stack, Switch, Textarea } from '@mantine/core'
import { SCHEDULERS } from '../words.ts'
import type { FormProps } from './Form.tsx'

const DEFAULTS = { sdxl_image_fast: { steps: 15, guidance: 6 }, sdxl_image_high: { steps: 25, guidance: 7.5 } }
const OWN = { value: '', label: "The model's own" }

export default function More({ wish, change, faultOf }: FormProps) {
  const usual = DEFAULTS[wish.job_type]
  return (
    <Stack gap="sm" pt="sm">
      <Textarea
        label="Negative prompt"
        description="what should not be in the picture"
        autosize
        minRows={2}
        maxRows={6}
        value={wish.negative_prompt}
        error={faultOf('negative_prompt')}
        onChange={(event) => change({ negative_prompt: event.currentTarget.value })}
      />
      <NumberInput
        label="Steps"
        placeholder={`${usual.steps}`}
        allowDecimal={false}
        value={wish.steps}
        error={faultOf('steps')}
        onChange={(value) => change({ steps: value === '' ? '' : Number(value) })}
      />
      <NumberInput
        label="Guidance"
        placeholder={`${usual.guidance}`}
        decimalScale={1}
        step={0.5}
        value={wish.guidance_scale}
        error={faultOf('guidance_scale')}
        onChange={(value) => change({ guidance_scale: value === '' ? '' : Number(value) })}
      />
      <NativeSelect
        label="Sampler"
        data={[OWN, ...Object.entries(SCHEDULERS).map(([value, label]) => ({ value, label }))]}
        value={wish.scheduler}
        onChange={(event) => change({ scheduler: event.currentTarget.value as typeof wish.scheduler })}
      />
      <NativeSelect
        label="File"
        data={[
          { value: 'png', label: 'PNG' },
          { value: 'webp', label: 'WebP, lossless' },
          { value: 'jpeg', label: 'JPEG' },
        ]}
        value={wish.output_format}
        onChange={(event) => change({ output_format: event.currentTarget.value as typeof wish.output_format })}
      />
      <NativeSelect
        label="A reference of another shape"
        data={[
          { value: 'cover', label: 'is cut to fit' },
          { value: 'contain', label: 'is shown whole, on white' },
        ]}
        value={wish.fit}
        onChange={(event) => change({ fit: event.currentTarget.value as typeof wish.fit })}
      />
      <Switch
        label="Keep my words out of the file"
        checked={wish.private_metadata}
        onChange={(event) => change({ private_metadata: event.currentTarget.checked })}
      />
      <Switch
        label="Let a language model write the prompt out"
        description="where the platform has one"
        checked={wish.enhance_prompt}
        onChange={(event) => change({ enhance_prompt: event.currentTarget.checked })}
      />
    </Stack>
  )
}
