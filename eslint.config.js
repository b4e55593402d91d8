import tseslint from 'typescript-eslint'

const clockOnly =
  'Time and chance come from a Clock and a Random handed in; only clock.ts reads the real ones, so that tests can move time by hand.'

export default tseslint.config(
  { ignores: ['**/node_modules/', 'dist/'] },
  ...tseslint.configs.recommendedTypeChecked,
  {
    languageOptions: { parserOptions: { projectService: { allowDefaultProject: ['*.js', '*/bin/*.js'] } } },
    rules: {
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/no-non-null-assertion': 'off',
      '@typescript-eslint/prefer-promise-reject-errors': 'off',
      '@typescript-eslint/only-throw-error': 'error',
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
      eqeqeq: ['error', 'always', { null: 'ignore' }],
      'no-console': 'error',
    },
  },
  {
    files: ['*/src/**/*.ts'],
    ignores: ['registry-client/src/clock.ts'],
    rules: {
      'no-restricted-globals': [
        'error',
        { name: 'setTimeout', message: clockOnly },
        { name: 'setInterval', message: clockOnly },
        { name: 'performance', message: clockOnly },
      ],
      'no-restricted-properties': [
        'error',
        { object: 'Math', property: 'random', message: clockOnly },
        { object: 'Date', property: 'now', message: clockOnly },
      ],
      'no-restricted-syntax': [
        'error',
        { selector: "NewExpression[callee.name='Date'][arguments.length=0]", message: clockOnly },
        { selector: "ImportDeclaration[source.value='node:timers/promises']", message: clockOnly },
      ],
    },
  },
  {
    files: ['test/**/*.ts'],
    rules: {
      // node:test's `test` and `describe` return promises that the runner awaits.
      '@typescript-eslint/no-floating-promises': 'off',
      '@typescript-eslint/require-await': 'off',
      'no-console': 'off',
    },
  },
  { files: ['**/*.js'], extends: [tseslint.configs.disableTypeChecked] },
  { files: ['test/mesh/apps/**', 'build.ts'], rules: { 'no-console': 'off' } },
)
