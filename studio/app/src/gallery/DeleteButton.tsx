// Deletes a job, after asking once more: its pictures cannot be brought back.

import { Button } from '@mantine/core'
import type { SDXLJob } from '@ourvidz/sdxl-client'
import { IconTrash } from '@tabler/icons-react'
import { useState } from 'react'
import { useJobs } from '../jobs.ts'
import { useServices } from '../services.ts'
import { sentence } from '../words.ts'

interface Props {
  job: SDXLJob
  onFailed(words: string): void
}

export function DeleteButton({ job, onFailed }: Props) {
  const { sdxl } = useServices()
  const jobs = useJobs()
  const [isAsked, setAsked] = useState(false)
  const [isBusy, setBusy] = useState(false)
  const count = job.images.length

  const remove = async (): Promise<void> => {
    setBusy(true)
    try {
      await sdxl.deleteJob(job.id)
      jobs.remove(job.id)
    } catch (error) {
      onFailed(sentence(error))
      setAsked(false)
      setBusy(false)
    }
  }
  if (!isAsked)
    return (
      <Button variant="default" leftSection={<IconTrash size={18} />} onClick={() => setAsked(true)}>
        Delete
      </Button>
    )
  return (
    <Button.Group>
      <Button color="red.9" loading={isBusy} onClick={() => void remove()}>
        {count > 1 ? `Delete all ${count} for good` : 'Delete for good'}
      </Button>
      <Button variant="default" autoFocus onClick={() => setAsked(false)}>
        Keep
      </Button>
    </Button.Group>
  )
}
