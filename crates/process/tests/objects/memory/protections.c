// object: memory whose protection changes, PROT_NONE with content included
// status: captured
#include "object.h"
#include <setjmp.h>
#include <sys/mman.h>

#define P 4096

static sigjmp_buf back;

static void fault(int signal) {
    siglongjmp(back, signal);
}

static int may(volatile unsigned char *at, int writing) {
    if (sigsetjmp(back, 1)) return 0;
    if (writing) *at = *at;
    else (void)*at;
    return 1;
}

int main(void) {
    static const int kinds[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE | PROT_EXEC};
    signal(SIGSEGV, fault);
    unsigned char *memory = mmap(0, 40 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    static unsigned char said[40], kind[40];
    for (int page = 0; page < 40; page++) memory[page * P] = said[page] = page + 100, kind[page] = 2;
    ready();
    unsigned step = 0;
    do {
        unsigned page = step * 7 % 40;
        CHECK(mprotect(memory + page * P, P, PROT_READ | PROT_WRITE) == 0);
        CHECK_EQUAL(memory[page * P], said[page]);
        memory[page * P] = ++said[page];
        kind[page] = step % 4;
        CHECK(mprotect(memory + page * P, P, kinds[kind[page]]) == 0);
        step++;
    } while (go_on());
    for (int page = 0; page < 40; page++) {
        CHECK_EQUAL(may(memory + page * P, 0), kind[page] >= 1);
        CHECK_EQUAL(may(memory + page * P, 1), kind[page] >= 2);
        CHECK(mprotect(memory + page * P, P, PROT_READ) == 0);
        CHECK_EQUAL(memory[page * P], said[page]);
    }
    PASS();
}
