// A picture as large as there is room, above its thumbnail until it has come.

import { Image } from '@mantine/core'
import { usePicture } from '../pictures.ts'
import { describe } from '../words.ts'
import type { Finished } from './tiles.ts'

export function FullPicture({ picture: { job, image, index } }: { picture: Finished }) {
  const { url, onError } = usePicture(image)
  return (
    <Image
      src={url?.url ?? null}
      onError={onError}
      alt={url && !url.url ? 'This picture is gone.' : describe(job, index)}
      width={image.width}
      height={image.height}
      radius="sm"
      fit="contain"
      mah="75vh"
      h="auto"
      style={{
        aspectRatio: `${image.width} / ${image.height}`,
        background: url?.thumbnailUrl ? `url(${JSON.stringify(url.thumbnailUrl)}) center / contain no-repeat` : undefined,
      }}
    />
  )
}
