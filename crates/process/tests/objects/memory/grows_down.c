// object: a mapping that grows down as it is used (`MAP_GROWSDOWN`)
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096

int main(void) {
    // Room below it.
    char *room = mmap(0, 4096 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED && munmap(room, 4096 * P) == 0);
    char *top = room + 4000 * P;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE;
    CHECK(mmap(top - 2 * P, 2 * P, PROT_READ | PROT_WRITE, flags, -1, 0) == top - 2 * P);
    static unsigned char said[2000];
    int deep = 2;
    ready();
    unsigned step = 0;
    do {
        // Downwards page by page, and again further up.
        if (deep < 1900) {
            deep++;
            top[-deep * P] = ++said[deep];
        }
        int page = 1 + step * 7 % deep;
        top[-page * P] = ++said[page];
        step++;
    } while (go_on());
    for (int page = 1; page <= deep; page++) CHECK_EQUAL((unsigned char)top[-page * P], said[page]);
    top[-(deep + 1) * P] = 1;
    PASS();
}
