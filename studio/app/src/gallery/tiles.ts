// One tile for each picture, there from the moment it is asked for, so that nothing moves when it comes.

import { isFinished, type SDXLImage, type SDXLJob } from '@ourvidz/sdxl-client'

export interface Tile {
  key: string
  job: SDXLJob
  /** Of the picture within its job. */
  index: number
  /** There when the job is completed. */
  image?: SDXLImage
}

/** A picture that can be looked at. */
export type Finished = Required<Tile>
export const isPicture = (tile: Tile): tile is Finished => tile.image !== undefined

export function tilesOf(job: SDXLJob): Tile[] {
  const at = (index: number, image?: SDXLImage): Tile => ({ key: `${job.id}/${index}`, job, index, ...(image && { image }) })
  if (job.status === 'completed') return job.images.map((image) => at(image.index, image))
  return isFinished(job) ? [at(0)] : Array.from({ length: job.batch_size }, (_, index) => at(index))
}
