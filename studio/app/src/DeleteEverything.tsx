// Deletes all that is the user's, after asking once more.

import { ActionIcon, Alert, Button, Group, Modal, Stack, Text } from '@mantine/core'
import { useDisclosure } from '@mantine/hooks'
import { IconTrash } from '@tabler/icons-react'
import { useState } from 'react'
import { useServices } from './services.ts'
import { sentence } from './words.ts'

export function DeleteEverything() {
  const { sdxl } = useServices()
  const [isOpen, { open, close }] = useDisclosure()
  const [isBusy, setBusy] = useState(false)
  const [failure, setFailure] = useState<string>()

  const remove = async (): Promise<void> => {
    setBusy(true)
    setFailure(undefined)
    try {
      await sdxl.deleteEverything()
      window.location.reload() // what the form holds may be a reference that is gone
    } catch (error) {
      setFailure(sentence(error))
    }
    setBusy(false)
  }
  return (
    <>
      <ActionIcon variant="default" size={36} aria-label="Delete everything" title="Delete everything" onClick={open}>
        <IconTrash size={20} />
      </ActionIcon>
      <Modal opened={isOpen} onClose={close} title="Delete everything?" closeButtonProps={{ 'aria-label': 'Close' }}>
        <Stack>
          <Text>
            All your pictures and all that you uploaded go for good, on every page of yours. What is being painted is stopped. Your
            account stays.
          </Text>
          {failure && (
            <Alert color="red" role="alert">
              {failure}
            </Alert>
          )}
          <Group justify="flex-end">
            <Button variant="default" data-autofocus onClick={close}>
              Keep everything
            </Button>
            <Button color="red.9" loading={isBusy} onClick={() => void remove()}>
              Delete everything
            </Button>
          </Group>
        </Stack>
      </Modal>
    </>
  )
}
