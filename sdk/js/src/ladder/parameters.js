/** Of the ladder; an app may set others. Milliseconds, unless told. */
export const PARAMETERS = {
  /** WebSocket joins after `joinRtts` round trips and `joinMs`, within these bounds; without a round trip, the later. */
  joinRtts: 1.5,
  joinMs: 100,
  joinMinMs: 250,
  joinMaxMs: 500,
  /**
   * Long poll has no handshake that could lose a race: it would always win. It joins at once where the one before it
   * failed, and where that one hangs, after so long.
   */
  longPollJoinMs: 3_000,
  /** For how long a transport counts as broken at first, doubled each time, up to the cap. */
  brokenMs: 60_000,
  brokenCapMs: 6 * 3_600_000,
  /** One that worked within this time may fail so many times before it counts as broken. */
  rememberMs: 24 * 3_600_000,
  tolerated: 2,
  /** Until a better transport is tried again, doubled each time, ± 50 %, up to the cap. */
  climbMs: 60_000,
  climbCapMs: 30 * 60_000,
  /** Until another try to get away from a connection that is suspect, doubled each time, ± 50 %, up to the cap. */
  escapeMs: 2_000,
  escapeCapMs: 16_000,
  /** How long the one that was climbed to is watched. */
  watchMs: 10_000,
};
