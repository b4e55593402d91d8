import type { Log } from '../../registry-client/src/log.ts'

/** Keeps what is logged, for tests that count warnings. */
export class MemoryLog implements Log {
  readonly lines: { readonly level: string; readonly message: string; readonly fields: object }[] = []

  debug(fields: object, message: string): void {
    this.lines.push({ level: 'debug', message, fields })
  }

  info(fields: object, message: string): void {
    this.lines.push({ level: 'info', message, fields })
  }

  warn(fields: object, message: string): void {
    this.lines.push({ level: 'warn', message, fields })
  }

  error(fields: object, message: string): void {
    this.lines.push({ level: 'error', message, fields })
  }

  /** The messages of one level that contain `part`. */
  of(level: string, part = ''): string[] {
    return this.lines.filter((line) => line.level === level && line.message.includes(part)).map((line) => line.message)
  }
}
