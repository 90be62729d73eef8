// SPDX-License-Identifier: Apache-2.0
/* Pairs of UNIX stream sockets: see sk_pair.h. */
/* wl: */
#define PAIR_TYPE SOCK_STREAM
#include "sk_pair.h"
