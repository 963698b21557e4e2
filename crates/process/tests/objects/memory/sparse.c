// object: a huge, sparse mapping (64 GiB), written here and there
// status: captured
#include "object.h"
#include <sys/mman.h>

#define G (1ul << 30)

int main(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    unsigned char *memory = mmap(0, 64 * G, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(memory != MAP_FAILED);
    static unsigned char said[64];
    ready();
    unsigned step = 0;
    do {
        unsigned at = step * 11 % 64;
        memory[at * G + at * 4096 * 777] = ++said[at];
        step++;
    } while (go_on());
    for (unsigned at = 0; at < 64; at++) CHECK_EQUAL(memory[at * G + at * 4096 * 777], said[at]);
    PASS();
}
