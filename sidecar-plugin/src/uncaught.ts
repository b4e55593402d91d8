/**
 * Ends the process with 1 on an error that nobody has caught, and says where it came from. Node would print the line of
 * the source, too, which is all of the program where that was bundled.
 */
export function endOnUncaught(): void {
  process.on('uncaughtException', (error: unknown) => {
    process.stderr.write(`${error instanceof Error ? error.stack : String(error)}\n`)
    process.exit(1)
  })
}
