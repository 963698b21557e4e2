// object: a handler for traps, of a program that traps all the time (breakpoints of its own, as SBCL has)
// status: captured
#include "object.h"
#include <ucontext.h>

static volatile long traps;

static void trapped(int number, siginfo_t *info, void *context) {
    (void)context;
    CHECK_EQUAL(number, SIGTRAP);
    CHECK_EQUAL(info->si_code, SI_KERNEL);
    traps++;
}

int main(void) {
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};
    CHECK(!sigaction(SIGTRAP, &action, 0));
    __asm__ volatile("int3");
    CHECK_EQUAL(traps, 1);
    ready();
    for (long turn = 2; go_on(); turn++) {
        __asm__ volatile("int3");
        CHECK_EQUAL(traps, turn);
        for (int many = 0; many < 100; many++) __asm__ volatile("int3");
        traps = turn;
    }
    PASS();
}
