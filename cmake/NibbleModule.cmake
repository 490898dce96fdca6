# nibble_module(NAME [DEPENDS module...] [OBJECT])
# Makes the target nibble_NAME of every .cpp below src/NAME. The target sees its own headers and those of the modules it
# depends on, as "module/header.h", and no others: each module's include path is a folder that holds one link to it.
# OBJECT: registered things (kernels, families, subcommands) live here, so the linker must keep every object file.
#
# One translation unit an instruction set: the end of a file's name says which it is compiled for.
set(NIBBLE_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mpopcnt)
set(NIBBLE_ISA_FLAGS_avxvnni ${NIBBLE_ISA_FLAGS_avx2} -mavxvnni)
# g++ 12 takes the undefined pass-through operands inside its own AVX-512 headers for a mistake of the caller.
set(NIBBLE_ISA_FLAGS_avx512
  ${NIBBLE_ISA_FLAGS_avx2} -Wno-uninitialized -Wno-maybe-uninitialized
  -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512cd)
set(NIBBLE_ISA_FLAGS_avx512vnni ${NIBBLE_ISA_FLAGS_avx512} -mavx512vnni)
set(NIBBLE_ISA_FLAGS_avx512bf16 ${NIBBLE_ISA_FLAGS_avx512vnni} -mavx512bf16)
set(NIBBLE_ISA_FLAGS_amx ${NIBBLE_ISA_FLAGS_avx512bf16} -mamx-tile -mamx-int8 -mamx-bf16)

set(NIBBLE_WARNINGS
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor -Woverloaded-virtual)

add_library(nibble_flags INTERFACE)
target_compile_options(nibble_flags INTERFACE ${NIBBLE_WARNINGS})
if(NIBBLE_WERROR)
  target_compile_options(nibble_flags INTERFACE -Werror)
endif()
if(NIBBLE_SANITIZE)
  target_compile_options(nibble_flags INTERFACE
    -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(nibble_flags INTERFACE -fsanitize=address,undefined)
endif()
if(NIBBLE_FUZZ)
  target_compile_options(nibble_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

function(nibble_module NAME)
  cmake_parse_arguments(M "OBJECT" "" "DEPENDS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${NAME}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/main\\.cpp$")
  # Files of the CUDA back end belong to a library of their own (cmake/NibbleCuda.cmake).
  list(FILTER sources EXCLUDE REGEX "/src/${NAME}/cuda/")
  if(NOT sources)
    # A module that is only headers so far still is a target.
    file(WRITE ${CMAKE_BINARY_DIR}/empty/${NAME}.cpp "")
    set(sources ${CMAKE_BINARY_DIR}/empty/${NAME}.cpp)
  endif()
  set(links ${CMAKE_BINARY_DIR}/modules/${NAME})
  file(MAKE_DIRECTORY ${links})
  file(CREATE_LINK ${CMAKE_SOURCE_DIR}/src/${NAME} ${links}/${NAME} SYMBOLIC)
  if(M_OBJECT)
    add_library(nibble_${NAME} OBJECT ${sources})
  else()
    add_library(nibble_${NAME} STATIC ${sources})
  endif()
  target_include_directories(nibble_${NAME} PUBLIC $<BUILD_INTERFACE:${links}>)
  target_link_libraries(nibble_${NAME} PRIVATE nibble_flags)
  foreach(dep ${M_DEPENDS})
    target_link_libraries(nibble_${NAME} PUBLIC nibble_${dep})
  endforeach()
  if(NIBBLE_LIBS_${NAME})
    target_link_libraries(nibble_${NAME} ${NIBBLE_LIBS_${NAME}})
  endif()
  foreach(isa avx2 avxvnni avx512 avx512vnni avx512bf16 amx)
    set(isa_sources ${sources})
    list(FILTER isa_sources INCLUDE REGEX "_${isa}\\.cpp$")
    if(isa_sources)
      set_source_files_properties(${isa_sources} PROPERTIES COMPILE_OPTIONS "${NIBBLE_ISA_FLAGS_${isa}}")
    endif()
  endforeach()
endfunction()
