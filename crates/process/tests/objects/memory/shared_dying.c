// object: shared anonymous memory, written by children that end, are killed or run another program
// status: captured
#include "object.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define P 4096

int main(void) {
    unsigned char *memory = mmap(0, 256 * P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    static unsigned char said[256];
    ready();
    unsigned step = 0;
    do {
        unsigned page = step * 37 % 256;
        said[page]++;
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            memory[page * P + 3] = said[page];
            if (step % 3 == 0) raise(SIGKILL);
            if (step % 3 == 1) execl("/bin/true", "true", (char *)0);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(step % 3 == 0 ? WIFSIGNALED(status) : status == 0);
        step++;
    } while (go_on());
    for (int at = 0; at < 256; at++) CHECK_EQUAL(memory[at * P + 3], said[at]);
    PASS();
}
