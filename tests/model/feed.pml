/* feed.pml - confirm, lease, generation, failover, restart, registry, receipt (DESIGN.md section 5 and
 * "Receipt" in section 7), for a feed written by direct publishers.  sources.pml has the cursor-fed one.
 *
 * Server 0 is the primary, server 1 its replica.  A stream is an array, a position (generation, index).
 * Indices collide whenever they can: after a restart they begin again at 1, after a failover both servers
 * go on counting from the same place; so the model never relies on the servers' clocks.
 * One node in full; all others are what they can do to it: put entries into the redis tier, as fresh as any
 * server allows.  One key in one shared entry (fence.pml has fills and L1), page size 1, time in ticks.
 * The commit and its publishing are apart; nodes and publisher reach either server in every call.    */
#define D     2                    /* max_staleness                                                   */
#ifndef T
#define T     2                    /* last tick                                                       */
#endif
#define LEN   5
#define GEN   9                    /* in a stream: generation event; 1, 2: that change of the key     */
#define NOISE 8                    /*              an event for another key                           */
#define MAX(a, b)  ((a) > (b) -> (a) : (b))

typedef Server {
  byte ev[LEN+1], tail, first;      /* first: newest position trimmed away                             */
  byte gen, start, born;           /* stored generation, where its event is, and when it was written  */
  bool renamed;                    /* master_replid is not the stored one                             */
  bool up, refuses;                /* refuses: min-replicas-to-write is not met                       */
  bool has; byte rg, rp, rt        /* the node's line in the registry: generation, position, time     */
}
Server s[2];
byte now, generations;
bool isolated, promoted, fellback;
byte ver;                                             /* origin                                       */
bool c; byte cv, cg, cp;                              /* the cached entry: version and as_of          */
bool acked[3], receipt[3]; byte at[3], pubgen[3], pubpos[3];  /* per change: published when, and where        */

#define WRITABLE(x) (s[x].up && !s[x].refuses)
#define ALIVE(x)    (s[x].up)
#ifdef BUG_CONFIRM_ONLY_READS
#define MAY_CONFIRM ALIVE
#else
#define MAY_CONFIRM WRITABLE
#endif
#ifdef BUG_GENERATION_COUNTS       /* the design's "increments a stored generation"                  */
#define NEXT_GENERATION(x) s[x].gen + 1
#else                              /* max(stored or shown + dice, server TIME): never given twice    */
#define NEXT_GENERATION(x) generations
#endif

/* Every script that touches the feed begins with this (section 5, Generation). */
inline check_generation(x) {
  if
#ifndef BUG_NO_GENERATION
  :: s[x].renamed || s[x].gen == 0 ->
       generations++; s[x].gen = NEXT_GENERATION(x); s[x].renamed = 0;
       s[x].tail++; s[x].ev[s[x].tail] = GEN; s[x].start = s[x].tail; s[x].born = now
#endif
  :: else
  fi
}

#ifdef BUG_GENERATION_COMPARED_AS_NUMBER
#define ADMITS (cg > g || (cg == g && cp >= floor && cp >= newest))
#else
#define ADMITS (cg == g && cp >= floor && cp >= newest)
#endif
#ifdef BUG_NO_PREDECESSOR_CHECK
#define CONTINUOUS(x) (g == s[x].gen && p <= s[x].tail)
#else
#define CONTINUOUS(x) (g == s[x].gen && p <= s[x].tail && p > s[x].first)
#endif

#define NEXT(x) (MAX(p, s[x].first) + 1)              /* XRANGE silently skips what was trimmed */
/* Confirm: one atomic script on one server; the answer is kept in r* until the node gets to it. */
inline confirm(x) {
  check_generation(x);
  s[x].has = 1; s[x].rg = g; s[x].rp = p; s[x].rt = now;
  rg = s[x].gen; sent = now;
  if
  :: CONTINUOUS(x) && NEXT(x) < s[x].tail -> r = 1; rp = NEXT(x); rev = s[x].ev[rp]
  :: CONTINUOUS(x) && NEXT(x) == s[x].tail -> r = 2; rp = NEXT(x); rev = s[x].ev[rp]
  :: CONTINUOUS(x) && NEXT(x) > s[x].tail -> r = 2; rp = p
  :: else -> r = 3; rp = s[x].tail; rfloor = rp;           /* BOOTSTRAPPING or RESETTING: from the tail, */
#ifndef NO_REPLAY
       if :: true                                         /* or back to the generation event            */
          :: rfloor = MAX(s[x].start, s[x].first + 1); rev = rp;
             do :: rev > rfloor && s[x].ev[rev] > 2 -> rev-- :: else -> break od;
             rnew = (s[x].ev[rev] > 2 -> 0 : rev); rev = 0
       fi
#endif
  fi
}
#ifdef BUG_LEASE_FROM_ANSWER
#define SENT now
#else
#define SENT sent
#endif
inline reply() {
  if
  :: r == 3 -> g = rg; floor = rfloor; newest = rnew
  :: else   -> if :: rev == 1 || rev == 2 -> newest = rp :: else fi
  fi;
  p = rp;
  if
#ifndef BUG_LEASE_BEFORE_LAST_PAGE
  :: r == 1
#endif
  :: else -> lease = MAX(lease, SENT + D)
  fi;
  r = 0; rg = 0; rp = 0; rev = 0; rfloor = 0; rnew = 0; sent = 0
}

active proctype node() {
  byte g, p, floor, newest, lease;             /* g = 0: has not started                    */
  byte r, rg, rp, rev, rfloor, rnew, sent, i;
  do
  :: atomic { r == 0 && MAY_CONFIRM(0) && s[0].tail < LEN -> confirm(0) }
  :: atomic { r == 0 && MAY_CONFIRM(1) && s[1].tail < LEN -> confirm(1) }
  :: atomic { r -> reply() }
  :: d_step { r -> r = 0; rg = 0; rp = 0; rev = 0; rfloor = 0; rnew = 0; sent = 0 }      /* answer lost  */
  :: d_step { g -> c = 1; cv = ver; cg = g; cp = p }                                   /* fill         */
  :: atomic { c && now < lease && ADMITS ->                                            /* hit          */
       assert(!(acked[1] && at[1] + D <= now) || cv >= 1);                             /* property 1   */
       assert(!(acked[2] && at[2] + D <= now) || cv >= 2);
       assert(!receipt[1] || cv >= 1);                                                 /* property 2   */
       assert(!receipt[2] || cv >= 2) }
  :: d_step { s[0].up && s[0].gen -> c = 1; cv = ver; cg = s[0].gen; cp = s[0].tail }  /* another node's */
  :: d_step { s[1].up && s[1].gen -> c = 1; cv = ver; cg = s[1].gen; cp = s[1].tail }
#ifdef BUG_XREAD_MOVES_POSITION    /* read on the old connection, confirm on the new one                 */
  :: d_step { r == 0 && promoted && g > 1 && p < s[0].tail -> p++; if :: s[0].ev[p] <= 2 -> newest = p :: else fi }
#endif
  :: d_step { g ->                                                   /* drains, deregisters */
       g = 0; p = 0; floor = 0; newest = 0; lease = 0; r = 0; rg = 0; rp = 0; rev = 0; rfloor = 0; rnew = 0; sent = 0;
       s[0].has = 0; s[1].has = 0 }
  :: atomic { now == T && r == 0 ->                          /* property 4: the faults are over        */
       if :: s[1].up -> i = 1 :: else -> i = 0 fi;
       WRITABLE(i) && s[i].tail < LEN;
       do
       :: confirm(i); reply();
          if :: g == s[i].gen && p == s[i].tail -> break :: else fi
       od;
       assert(now < lease && p >= floor && p >= newest) } break
  od
}

/* Section 7: publish after the commit, by a script that checks the generation too; 503 is not acked. */
inline publish(x, k) {
#ifndef PUBLISH_BARE                /* not a bug: a receipt wants the very same generation          */
  check_generation(x);
#endif
  s[x].tail++; s[x].ev[s[x].tail] = k;
  if :: k <= 2 -> acked[k] = 1; at[k] = now; pubgen[k] = s[x].gen; pubpos[k] = s[x].tail :: else fi
}
active proctype publisher() {
  bool noise;
  do
  :: d_step { ver < 2 -> ver++ }
  :: atomic { ver >= 1 && !acked[1] && WRITABLE(0) && s[0].tail + 1 < LEN -> publish(0, 1) }
  :: atomic { ver >= 1 && !acked[1] && WRITABLE(1) && s[1].tail + 1 < LEN -> publish(1, 1) }
  :: atomic { ver == 2 && !acked[2] && WRITABLE(0) && s[0].tail + 1 < LEN -> publish(0, 2) }
  :: atomic { ver == 2 && !acked[2] && WRITABLE(1) && s[1].tail + 1 < LEN -> publish(1, 2) }
#ifdef NOISY
  :: atomic { !noise && WRITABLE(0) && s[0].tail + 2 < LEN -> noise = 1; publish(0, NOISE) }
#endif
  od
}

/* Receipt, the quick way: the registry of the server that took the event, or of the other one, shows every
 * process at the position, or silent for so long that its lease is gone.  (The slow way, waiting max_staleness
 * after the acknowledgement, is property 1.)                                                              */
#ifdef BUG_RECEIPT_FORGETS_SILENT
#define GONE(x) (s[x].rt < now)
#else
#define GONE(x) (s[x].rt + D <= now)
#endif
#ifdef BUG_RECEIPT_FROM_YOUNG_GENERATION
#define OLD_ENOUGH(x) true
#else
#define OLD_ENOUGH(x) (s[x].start == 1 && s[x].gen == 1 || s[x].born + D <= now)
#endif
#ifdef BUG_RECEIPT_IGNORES_GENERATION
#define SAME(a, b) ((a) >= (b))
#else
#define SAME(a, b) ((a) == (b))
#endif
#define DEAD(x, k)    (!s[x].has || GONE(x) || (SAME(s[x].rg, pubgen[k]) && (s[x].rg > pubgen[k] || s[x].rp >= pubpos[k])))
#define GRANTS(x, k)  (acked[k] && SAME(s[x].gen, pubgen[k]) && OLD_ENOUGH(x) && DEAD(x, k))
#ifdef BUG_RECEIPT_ONLY_READS
#define ASK(x, k) d_step { !receipt[k] && s[x].up && GRANTS(x, k) -> receipt[k] = 1 }
#else                              /* like every script: check the generation, and write or be refused */
#define ASK(x, k) atomic { !receipt[k] && acked[k] && WRITABLE(x) && s[x].tail < LEN ->                 \
                           check_generation(x); if :: GRANTS(x, k) -> receipt[k] = 1 :: else fi }
#endif
#ifdef RECEIPTS
active proctype waiter() {
  do
  :: ASK(0, 1)
  :: ASK(0, 2)
  :: ASK(1, 1)
  :: ASK(1, 2)
  od
}
#endif

#ifdef MIN_REPLICAS                /* min-replicas-max-lag < down-after, taken as if it always sufficed */
#define MAY_PROMOTE s[0].refuses
#else
#define MAY_PROMOTE true
#endif
active proctype world() {
  byte n, i; bool emptied;
  d_step { s[0].up = 1; s[0].gen = 1; s[0].start = 1; s[0].tail = 1; s[0].ev[1] = GEN; generations = 1 }
  do
  :: d_step { now < T -> now++ }
#ifdef TRIM
  :: d_step { s[0].first + 1 < s[0].tail -> s[0].first++ }
#endif
#ifdef FAILOVER
  :: atomic { !isolated -> isolated = 1; n = s[0].tail;           /* the replica has only the first n       */
#ifndef WAIT
       do :: n > 1 -> n-- :: break od;
#endif
       d_step { s[1].tail = n; s[1].gen = s[0].gen; s[1].start = s[0].start; s[1].born = s[0].born; s[1].first = s[0].first;
       i = 1; do :: i <= n -> s[1].ev[i] = s[0].ev[i]; i++ :: else -> break od; n = 0; i = 0;
       if :: s[1].start > s[1].tail -> s[1].gen = 0; s[1].start = 0 :: else fi }
#ifdef WAIT
       s[0].refuses = 1                                         /* nothing on it is acknowledged any more */
#endif
     }
  :: d_step { isolated && !s[0].refuses -> s[0].refuses = 1 }
  :: d_step { isolated && !promoted && MAY_PROMOTE -> promoted = 1; s[1].up = 1; s[1].renamed = 1 }
#endif
#ifdef EMPTY
  :: d_step { !emptied && !isolated -> emptied = 1;                  /* FLUSHALL: everything goes, replid stays */
       s[0].tail = 0; s[0].first = 0; s[0].gen = 0; s[0].start = 0; s[0].has = 0 }
#endif
#ifdef FAILBACK
  :: d_step { promoted && s[1].up && !fellback -> fellback = 1;          /* the new primary dies, the old returns */
       s[1].up = 0; s[0].refuses = 0; s[0].renamed = 1; s[0].has = 0 }
#endif
  od
}
