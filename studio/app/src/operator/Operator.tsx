// What an operator sees: how the queue stands, and who works on it. Numbers only; nobody's words or pictures.

import { Alert, Badge, Group, Loader, Paper, SimpleGrid, Stack, Table, Text, Title } from '@mantine/core'
import { useServices } from '../services.ts'
import { ago, span } from '../words.ts'
import { type Fleet, type QueueHealth, useOverview } from './overview.ts'

export default function Operator() {
  const { supabase } = useServices()
  const { overview, failure } = useOverview(supabase)
  if (!overview) return failure ? <Failure message={failure} /> : <Loader aria-label="Loading" />
  return (
    <Stack gap="xl">
      {failure && <Failure message={failure} />}
      {overview.queues.map((queue) => (
        <Queue key={queue.target_worker} queue={queue} />
      ))}
      {overview.queues.length === 0 && <Text c="dimmed">No jobs and no workers yet.</Text>}
      <section>
        <Title order={2} size="h3" mb="sm">
          Workers
        </Title>
        {overview.fleet.length ? <Workers fleet={overview.fleet} /> : <Text c="dimmed">No worker has reported yet.</Text>}
      </section>
    </Stack>
  )
}

const Failure = ({ message }: { message: string }) => (
  <Alert color="yellow" role="status">
    {message}
  </Alert>
)

function Queue({ queue }: { queue: QueueHealth }) {
  const failures = Object.entries(queue.failures_last_day ?? {})
  return (
    <section>
      <Title order={2} size="h3" mb="sm">
        Queue {queue.target_worker}
      </Title>
      <SimpleGrid cols={{ base: 2, xs: 3, md: 6 }} spacing="sm">
        <Figure name="Waiting" value={queue.waiting} />
        <Figure name="Oldest waits" value={span(queue.oldest_waiting_seconds)} />
        <Figure name="Painting" value={queue.running} />
        <Figure name="Workers" value={queue.live_workers} />
        {queue.starting_workers > 0 && <Figure name="Workers coming" value={queue.starting_workers} />}
        <Figure name="Done, last hour" value={queue.completed_last_hour} />
        <Figure name="Failed, last hour" value={queue.failed_last_hour} />
        <Figure name="Wait, median" value={span(queue.wait_seconds_p50)} />
        <Figure name="Wait, slowest of 20" value={span(queue.wait_seconds_p95)} />
        <Figure name="Painting takes" value={span(queue.run_seconds_p50)} />
      </SimpleGrid>
      {queue.runpod_error && <Failure message={`RunPod was asked in vain, and is asked again: ${queue.runpod_error}`} />}
      {failures.length > 0 && (
        <Group gap="xs" mt="sm">
          <Text size="sm">Failures of the last day:</Text>
          {failures.map(([code, count]) => (
            <Badge key={code} variant="default" tt="none">
              {code} × {count}
            </Badge>
          ))}
        </Group>
      )}
    </section>
  )
}

const Figure = ({ name, value }: { name: string; value: string | number | null }) => (
  <Paper withBorder p="sm">
    <Text size="sm" c="dimmed">
      {name}
    </Text>
    <Text size="xl" fw={600}>
      {value ?? '–'}
    </Text>
  </Paper>
)

const Workers = ({ fleet }: { fleet: Fleet[] }) => (
  <Table.ScrollContainer minWidth={720} type="native" tabIndex={0} role="region" aria-label="Workers">
    <Table verticalSpacing="xs">
      <Table.Thead>
        <Table.Tr>
          {['Worker', 'State', 'Jobs', 'GPU', 'Model', 'Engine', 'Version', 'Seen'].map((name) => (
            <Table.Th key={name} scope="col">
              {name}
            </Table.Th>
          ))}
        </Table.Tr>
      </Table.Thead>
      <Table.Tbody>
        {fleet.map((worker) => (
          <Table.Tr key={worker.id}>
            <Table.Td>{worker.id}</Table.Td>
            <Table.Td>
              <Badge variant={worker.is_live ? 'filled' : 'default'} tt="none">
                {worker.is_live || ['stopped', 'failed'].includes(worker.state) ? worker.state : 'lost'}
              </Badge>
              {worker.error && (
                <Text size="sm" c="dimmed">
                  {worker.error}
                </Text>
              )}
            </Table.Td>
            <Table.Td>{worker.running}</Table.Td>
            <Table.Td>
              {worker.gpu ? `${worker.gpu}${worker.vram_mb ? `, ${Math.round(worker.vram_mb / 1024)} GB` : ''}` : 'CPU'}
            </Table.Td>
            <Table.Td>{worker.model}</Table.Td>
            <Table.Td title={worker.engine_note ?? undefined}>{worker.engine}</Table.Td>
            <Table.Td>{worker.version}</Table.Td>
            <Table.Td>{ago(worker.seen_seconds_ago)}</Table.Td>
          </Table.Tr>
        ))}
      </Table.Tbody>
    </Table>
  </Table.ScrollContainer>
)
