/** Why a request failed, as the server said it (HTTP's numbers), or as the client knows: see `session.js`. */
export class TidegateError extends Error {
  name = "TidegateError";

  /**
   * @param {number} code
   * @param {string} message
   * @param {boolean} retry the same request may succeed later
   */
  constructor(code, message, retry) {
    super(message);
    this.code = code;
    this.retry = retry;
  }

  /** @param {{ code: number, message: string, retry: boolean }} error */
  static from({ code, message, retry }) {
    return new TidegateError(code, message, retry);
  }
}
