/* lane_order.h: where a lane of op.h's dot lies in a row of q_act_lanes: in the order in which the sums of lanes are
 * added, 0 8 4 12 2 10 6 14 1 ..., so that a kernel that goes lane by lane reads a row as one stream. Layer L2. */
#ifndef Q_LANE_ORDER_H
#define Q_LANE_ORDER_H

#include <stdint.h>

/* Its four bits, reversed. So this is also the lane at a place. */
static inline int64_t q_lane_place(int64_t lane) {
    return (lane & 1) << 3 | (lane & 2) << 1 | (lane & 4) >> 1 | (lane & 8) >> 3;
}

#endif
