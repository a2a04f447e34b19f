// What a picture was made of, or what two were, with what differs marked.

import { Badge, Table } from '@mantine/core'
import { parametersOf } from '../words.ts'
import type { Finished } from './tiles.ts'

export function Parameters({ pictures }: { pictures: readonly Finished[] }) {
  const columns = pictures.map(({ job, image }) => parametersOf(job, image))
  const names = columns[0]?.map(([name]) => name) ?? []
  const lines = names
    .map((name, row) => ({ name, values: columns.map((column) => column[row]?.[1] ?? '') }))
    .filter(({ values }) => values.some(Boolean))
  return (
    <Table verticalSpacing={4} layout="fixed" withRowBorders>
      <Table.Tbody>
        {lines.map(({ name, values }) => {
          const differs = new Set(values).size > 1
          return (
            <Table.Tr key={name} data-differs={differs || undefined} {...(differs && { bg: 'var(--mantine-primary-color-light)' })}>
              <Table.Th w={pictures.length > 1 ? '22%' : '36%'} scope="row" style={{ verticalAlign: 'top' }}>
                {name} {differs && <Badge size="xs">differs</Badge>}
              </Table.Th>
              {values.map((value, column) => (
                <Table.Td key={pictures[column]?.key} style={{ overflowWrap: 'anywhere', verticalAlign: 'top' }}>
                  {value || '–'}
                </Table.Td>
              ))}
            </Table.Tr>
          )
        })}
      </Table.Tbody>
    </Table>
  )
}
