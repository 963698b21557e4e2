// object: terabytes of reserved addresses (PROT_NONE), opened and used piece by piece
// status: captured
// note: as Go and Java do; what is only reserved costs nothing
#include "object.h"
#include <sys/mman.h>

#define P 4096
#define T (1ul << 40)
#define STRIDE (10ul << 30)

int main(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    unsigned char *memory = mmap(0, 4 * T, PROT_NONE, flags, -1, 0);
    CHECK(memory != MAP_FAILED);
    static unsigned char said[400];
    unsigned pieces = 0;
    ready();
    unsigned step = 0;
    do {
        if (pieces < 400) {
            // By `mprotect` as glibc, or by mapping over it as others.
            unsigned char *piece = memory + pieces * STRIDE;
            int access = PROT_READ | PROT_WRITE;
            if (pieces % 2) CHECK(mprotect(piece, 16 * P, access) == 0);
            else CHECK(mmap(piece, 16 * P, access, flags | MAP_FIXED, -1, 0) == piece);
            pieces++;
        }
        for (int i = 0; i < 3; i++) {
            unsigned at = (step * 3 + i) % pieces;
            memory[at * STRIDE + 5 * P] = ++said[at];
        }
        step++;
    } while (go_on());
    for (unsigned at = 0; at < pieces; at++) CHECK_EQUAL(memory[at * STRIDE + 5 * P], said[at]);
    PASS();
}
