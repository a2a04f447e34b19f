import { fileURLToPath } from 'node:url'
import react from '@vitejs/plugin-react'
import { defineConfig } from 'vite'

export default defineConfig({
  plugins: [react()],
  base: './', // served from any folder
  // from its source: no build of the client is needed first
  resolve: { alias: { '@ourvidz/sdxl-client': fileURLToPath(new URL('../packages/client/src/index.ts', import.meta.url)) } },
  build: { target: 'es2022' },
})
